// llama.cpp through node-llama-cpp, answering the calls of wire.py on stdin and stdout.
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [modelPath, threads, contextSize] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const now = () => performance.now() / 1000;

const start = now();
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize, threads, batchSize: 512});
const sequence = context.getSequence();
const loadSeconds = now() - start;
let next = null;
let steps = null;

async function choose(tokens) {
    // One generator goes on for ever; each value is a chosen id, which is evaluated when the next is asked for.
    steps = sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true});
    next = (await steps.next()).value;
}

const calls = {
    describe: async () => ({engine: "llama.cpp", weights: "Q4_1", load_s: loadSeconds}),
    read: async ({ids}) => {
        if (steps != null) await steps.return();
        await sequence.clearHistory();
        const begin = now();
        await choose(ids);
        return {seconds: now() - begin};
    },
    decode: async ({count}) => {
        const seconds = [];
        for (let i = 0; i < count; i++) {
            const begin = now();
            const step = await steps.next();
            // An end of generation ends the generator: go on from the same place.
            if (step.done) await choose([next]);
            else next = step.value;
            seconds.push(now() - begin);
        }
        return {seconds};
    },
    memory: async () => ({rss_mb: process.memoryUsage().rss / 1e6, state_mb: context.stateSize / 1e6}),
};

for await (const line of createInterface({input: process.stdin})) {
    const call = JSON.parse(line);
    let answer;
    try {
        answer = calls[call.do] == null
            ? {error: "a saved conversation is read again from the start"}
            : await calls[call.do](call);
    } catch (error) {
        answer = {error: String(error?.message ?? error)};
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
