// A GGUF file in llama.cpp, by npm's node-llama-cpp: `node run_llama_cpp.mjs JOB OUT`. The chat template is the file's own, rendered
// as node-llama-cpp does, by @huggingface/jinja.
import fs from "node:fs";
import path from "node:path";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [jobPath, outPath] = process.argv.slice(2);
const job = JSON.parse(fs.readFileSync(jobPath, "utf8"));
const entry = path.join(job.modules, "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const {Template} = await import(pathToFileURL(createRequire(entry).resolve("@huggingface/jinja")).href);
const version = JSON.parse(fs.readFileSync(path.join(job.modules, "node-llama-cpp", "package.json"), "utf8")).version;
let file = job.model;
if (fs.statSync(file).isDirectory()) {
    const name = fs.readdirSync(file).find((each) => each.endsWith(".gguf"));
    file = path.join(file, name);
}
// its threads wait actively for each other: on cores that others use too, two were eight times slower than one for a small model
const maxThreads = fs.statSync(file).size < 2 ** 30 ? 1 : undefined;
const llama = await getLlama({gpu: false, build: "never", maxThreads, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: file});
const metadata = model.fileInfo.metadata.tokenizer;
const template = metadata.chat_template === undefined ? null : new Template(metadata.chat_template);
const longest = Math.max(...job.chats.map((chat) => chat.ids.length)) + job.count + 1;
// half-precision caches and flash attention are llama.cpp's defaults; they would hide what the file itself is worth
const context = await model.createContext({
    contextSize: longest, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false
});

function render(chat) {
    if (template === null) return null;
    const switches = chat.thinking === null ? {} : {enable_thinking: chat.thinking, open_thinking: chat.thinking};
    const tokens = metadata.ggml.tokens;
    const special = (id) => id === undefined ? "" : tokens[id];
    return template.render({
        messages: chat.messages, tools: chat.tools.length ? chat.tools : undefined, add_generation_prompt: true,
        bos_token: special(metadata.ggml.bos_token_id), eos_token: special(metadata.ggml.eos_token_id), ...switches
    });
}

async function greedy(prompt) {
    const sequence = context.getSequence();
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (job.stop.includes(token) || tokens.length >= job.count) break;
    }
    await sequence.dispose();
    return tokens;
}

async function logprobs({ids, reply, asked}) {
    const sequence = context.getSequence();
    const first = ids.length - 1;
    const options = {temperature: 1, topK: 0, topP: 1, minP: 0};
    const input = [...ids, ...reply].slice(0, -1).map((id, place) =>
        place < first ? id : [id, {generateNext: {probabilities: true, options}}]
    );
    const found = await sequence.controlledEvaluate(input);
    await sequence.dispose();
    return asked.map((tokens, place) => {
        const chances = found[first + place].next.probabilities;
        return tokens.map((token) => chances.has(token) && chances.get(token) > 0 ? Math.log(chances.get(token)) : null);
    });
}

const results = [];
for (const chat of job.chats) {
    const text = render(chat);
    const reply = await greedy(chat.ids);
    results.push({
        text, ids: text === null ? chat.ids : [...model.tokenize(text, true)], reply,
        stop: job.stop.includes(reply.at(-1)) ? "stop" : "length", logprobs: await logprobs(chat)
    });
    console.log(`done ${results.length}`);
}
fs.writeFileSync(outPath, JSON.stringify({engine: `llama.cpp ${llama.llamaCppRelease.release} (node-llama-cpp ${version})`, chats: results}));
process.exit(0);
