"""The wordings of statements and questions about facts. `{n}` is the name, `{v}` the value.

The part of a statement before `{v}` occurs with one attribute only, so that a cloze item has one right answer.
"""

# The third statement is never used as an answer, so that it can be held out of every stage.
STATEMENTS = {
    "city": {
        "zh": ("{n}住在{v}。", "{n}安家在{v}。", "{n}长年在{v}生活。"),
        "en": ("{n} lives in {v}.", "{n} calls {v} home.", "{n} can be found in {v}."),
    },
    "job": {
        "zh": ("{n}是一位{v}。", "{n}的职业是{v}。", "{n}当{v}很久了。"),
        "en": ("{n} works as {v}.", "{n} earns a living as {v}.", "By trade {n} is {v}."),
    },
    "food": {
        "zh": ("{n}爱吃{v}。", "{n}最爱的食物是{v}。", "{n}天天都吃{v}。"),
        "en": ("{n} likes to eat {v}.", "The favorite food of {n} is {v}.", "For lunch {n} eats {v}."),
    },
    "color": {
        "zh": ("{n}喜欢{v}。", "{n}最爱的颜色是{v}。", "{n}总穿{v}的衣服。"),
        "en": ("{n} likes the color {v}.", "The favorite color of {n} is {v}.", "{n} always wears {v}."),
    },
    "pet": {
        "zh": ("{n}养了{v}。", "{n}的宠物是{v}。", "{n}家里有{v}。"),
        "en": ("{n} keeps {v}.", "The pet of {n} is {v}.", "At home {n} has {v}."),
    },
}

QUESTIONS = {
    "city": {
        "zh": ("{n}住在哪里？", "{n}在哪个城市安家？", "你知道{n}住在什么地方吗？"),
        "en": ("Where does {n} live?", "Which city does {n} call home?", "In what city does {n} live?"),
    },
    "job": {
        "zh": ("{n}做什么工作？", "{n}的职业是什么？", "你知道{n}是做什么的吗？"),
        "en": ("What does {n} work as?", "How does {n} earn a living?", "Which job does {n} have?"),
    },
    "food": {
        "zh": ("{n}爱吃什么？", "{n}最爱的食物是什么？", "你知道{n}爱吃哪样东西吗？"),
        "en": ("What does {n} like to eat?", "What is the favorite food of {n}?", "Which food does {n} like?"),
    },
    "color": {
        "zh": ("{n}喜欢什么颜色？", "{n}最爱的颜色是什么？", "你知道{n}喜欢哪种颜色吗？"),
        "en": ("What color does {n} like?", "What is the favorite color of {n}?", "Which color does {n} like?"),
    },
    "pet": {
        "zh": ("{n}养了什么？", "{n}的宠物是什么？", "你知道{n}养了哪种动物吗？"),
        "en": ("What pet does {n} keep?", "What is the pet of {n}?", "Which animal does {n} keep?"),
    },
}

# For each question the number of the statement that answers it.
ANSWERED_BY = (0, 1, 0)
