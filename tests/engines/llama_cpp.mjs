// Runs GGUF files in llama.cpp. `node llama_cpp.mjs MODULES JOB OUT` writes JSON: for each file of the job the ids of texts, and
// for each sequence the greedy tokens after its prompt and the log-probabilities of the tokens asked for at each position.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [modules, job, out] = process.argv.slice(2);
const entry = path.join(path.resolve(modules), "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: LlamaLogLevel.error});
const {files, texts, count} = JSON.parse(fs.readFileSync(job, "utf8"));
const cache = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false};

async function greedy(context, prompt) {
    const sequence = context.getSequence();
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length >= count) break;
    }
    await sequence.dispose();
    return tokens;
}

async function logprobs(context, {prompt, reply, asked}) {
    const sequence = context.getSequence();
    const ids = [...prompt, ...reply];
    const first = prompt.length - 1;
    const input = ids.slice(0, -1).map((id, place) =>
        place < first ? id : [id, {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}]
    );
    const found = await sequence.controlledEvaluate(input);
    await sequence.dispose();
    return asked.map((tokens, place) => {
        const chances = found[first + place].next.probabilities;
        return tokens.map((token) => Math.log(chances.get(token)));
    });
}

const results = [];
for (const {file, sequences} of files) {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({contextSize: 1024, ...cache});
    const found = {ids: texts.map((text) => [...model.tokenize(text, true)]), greedy: [], logprobs: []};
    for (const sequence of sequences) {
        found.greedy.push(await greedy(context, sequence.prompt));
        found.logprobs.push(await logprobs(context, sequence));
    }
    results.push(found);
    await context.dispose();
    await model.dispose();
}
fs.writeFileSync(out, JSON.stringify({release: llama.llamaCppRelease, results}));
process.exit(0);
