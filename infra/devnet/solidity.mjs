// Compile Solidity with the pinned npm compiler: standard JSON input on stdin, standard JSON output on stdout.
// https://docs.soliditylang.org/en/latest/using-the-compiler.html#compiler-input-and-output-json-description
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const solc = createRequire(import.meta.url)("solc");
const input = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify({ version: solc.version(), output: JSON.parse(solc.compile(JSON.stringify(input))) }));
