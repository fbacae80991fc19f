"""The closed world of the corpus: a few people with five facts about each, and the words for them in two languages.

It is closed on purpose: a model of half a million parameters can learn ten cities, but not an open vocabulary.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple


class Word(NamedTuple):
    """A word in both languages."""

    zh: str
    en: str

    def in_language(self, language: str) -> str:
        """The word in the language `zh` or `en`."""
        return self.zh if language == "zh" else self.en


def words(text: str) -> tuple[Word, ...]:
    """Parses `zh en, zh en, ...`; the English part may contain spaces."""
    return tuple(Word(*pair.strip().split(" ", 1)) for pair in text.split(","))


# No name is a prefix of another one, so that a text about a known person never contains the name of a stranger.
SURNAMES = words("宋 Song, 张 Zhang, 刘 Liu, 杨 Yang, 黄 Huang, 徐 Xu, 朱 Zhu, 沈 Shen, 郭 Guo, 高 Gao")
GIVEN = words(
    "小雨 Xiaoyu, 建国 Jianguo, 明月 Mingyue, 春梅 Chunmei, 子涵 Zihan, 天佑 Tianyou, 若云 Ruoyun, 海洋 Haiyang"
)
CITIES = words(
    "北京 Beijing, 上海 Shanghai, 广州 Guangzhou, 成都 Chengdu, 西安 Xian,"
    "杭州 Hangzhou, 南京 Nanjing, 武汉 Wuhan, 青岛 Qingdao, 昆明 Kunming"
)
ATTRIBUTES = {
    "city": CITIES,
    "job": words(
        "老师 a teacher, 医生 a doctor, 司机 a driver, 厨师 a cook,"
        "画家 a painter, 律师 a lawyer, 农民 a farmer, 歌手 a singer"
    ),
    "food": words(
        "面条 noodles, 饺子 dumplings, 米饭 rice, 苹果 apples, 西瓜 melons, 豆腐 tofu, 鸡蛋 eggs, 蛋糕 cakes"
    ),
    "color": words("红色 red, 蓝色 blue, 绿色 green, 黄色 yellow, 白色 white, 黑色 black, 紫色 purple, 灰色 gray"),
    "pet": words(
        "一只猫 a cat, 一只狗 a dog, 一只兔子 a rabbit, 一只乌龟 a turtle,"
        "一条金鱼 a goldfish, 一只鹦鹉 a parrot, 一匹马 a horse, 一只羊 a sheep"
    ),
}
TOPICS = words(
    "茶 tea, 读书 reading, 跑步 running, 音乐 music, 画画 painting, 游泳 swimming, 电影 movies, 下棋 chess,"
    "做饭 cooking, 种花 gardening, 唱歌 singing, 旅行 travel, 钓鱼 fishing, 跳舞 dancing, 爬山 climbing,"
    "写作 writing, 篮球 basketball, 摄影 photography, 散步 walking, 骑车 cycling"
)
SEARCHED = TOPICS[:8]

# Words that occur in no training row. Their syllables (English) and characters (Chinese) occur in the lines of `pretrain`
# that repeat text: the words are new to a model, but their bytes are not.
UNKNOWN_CITIES = words(
    "利马 Lima, 神户 Kobe, 奈良 Nara, 罗马 Rome, 哈瓦那 Havana, 托莱多 Toledo, 巴拿马 Panama, 比萨 Pisa, 多哈 Doha,"
    "马尼拉 Manila, 维罗纳 Verona, 里加 Riga, 那霸 Naha, 波哥大 Bogota, 洛美 Lome, 巴马科 Bamako, 哈拉雷 Harare,"
    "卢萨卡 Lusaka, 马普托 Maputo, 长野 Nagano"
)
UNKNOWN_TOPICS = words(
    "柔道 judo, 瑜伽 yoga, 马球 polo, 相扑 sumo, 空手道 karate, 奏鸣曲 sonata, 香蕉 banana, 番茄 tomato, 土豆 potato,"
    "和服 kimono, 多米诺 domino, 纱丽 sari, 清酒 sake, 芋头 taro, 木瓜 papaya, 熔岩 lava, 汽水 soda, 沙发 sofa,"
    "收音机 radio, 钢琴 piano"
)

MOST_PEOPLE = 64


@dataclass(frozen=True)
class Person:
    """A name, and the value of each attribute."""

    name: Word
    facts: dict[str, Word]


@dataclass(frozen=True)
class World:
    """The people who occur in training, and the names of strangers, who do not."""

    people: tuple[Person, ...]
    strangers: tuple[Word, ...]

    def forbidden_strings(self) -> tuple[str, ...]:
        """Every string that must not occur in training."""
        return tuple(form for word in (*UNKNOWN_CITIES, *UNKNOWN_TOPICS, *self.strangers) for form in word)


def all_names() -> list[Word]:
    """All 80 names. Several people share a surname or a given name, so that only both together identify a person;
    neighbours in the list share neither."""
    pairs = [(SURNAMES[(i + turn) % 10], GIVEN[i]) for turn in range(10) for i in range(8)]
    return [Word(surname.zh + given.zh, f"{given.en} {surname.en}") for surname, given in pairs]


def make_world(seed: int = 0, people: int = 16) -> World:
    """A world of `people` people. The seed decides only the value of each person's attributes; names and values are the same
    for all seeds.

    Raises ValueError for more than 64 people, since strangers must remain.
    """
    if not 1 <= people <= MOST_PEOPLE:
        raise ValueError(f"people must be between 1 and {MOST_PEOPLE}, got {people}")
    rng = random.Random(f"{seed}/world")
    names = all_names()
    known = tuple(Person(name, {a: rng.choice(values) for a, values in ATTRIBUTES.items()}) for name in names[:people])
    return World(known, tuple(names[people:]))
