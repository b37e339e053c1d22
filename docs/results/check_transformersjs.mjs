// Encodes texts with an ONNX export in transformers.js on node, from the disk alone; prints a vector a line, as JSON.
//
//     npm install @huggingface/transformers
//     node check_transformersjs.mjs EXPORT < texts.txt > vectors.jsonl
//
// Texts come one a line. Pooling is the mean, and vectors have length 1, as all-MiniLM-L6-v2 has them.

import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.cwd()}/`).resolve("@huggingface/transformers");
const { env, pipeline } = await import(pathToFileURL(found));
const folder = resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const encode = await pipeline("feature-extraction", basename(folder));
const texts = readFileSync(0, "utf8").trim().split("\n");
for (let first = 0; first < texts.length; first += 16) {
    const vectors = await encode(texts.slice(first, first + 16), { pooling: "mean", normalize: true });
    for (const vector of vectors.tolist()) console.log(JSON.stringify(vector));
}
console.error(`transformers.js ${env.version}`);
