/** A real verifier with the reference target, in a process of its own, and a device of Python's beside it. */

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";

import type { WorkerLike } from "../src/index.js";
import type { FromWorker } from "../src/worker_messages.js";

export const ROOT = fileURLToPath(new URL("../../../../", import.meta.url)); // from build/sdk/test
export const PYTHON = process.env.PYTHON ?? `${ROOT}.venv/bin/python`;
const DRAFT = fileURLToPath(new URL("../../draft/", import.meta.url));

export class Verifier {
  private constructor(
    private readonly process: ChildProcess,
    readonly http: string,
    readonly grpc: string,
  ) {}

  static async start(): Promise<Verifier> {
    const command = ["-m", "pilotfish_cloud", "serve", "reference/target", "--json", "--until-stdin-closes"];
    command.push("--port", "0", "--http-port", "0", "--deterministic", "--dtype", "float32", "--drafts", DRAFT);
    const child = spawn(PYTHON, command, { cwd: ROOT, stdio: ["pipe", "pipe", "inherit"] });
    const lines = createInterface({ input: child.stdout });
    const [line] = (await once(lines, "line")) as [string];
    const { http, address } = JSON.parse(line) as { http: string; address: string };
    return new Verifier(child, http, address);
  }

  async stop(): Promise<void> {
    const ended = once(this.process, "exit");
    this.process.stdin?.end();
    await ended;
  }

  /** Token ids of the Python device's answer. */
  answerOfPython(prompt: string, maxTokens: number, temperature: number, seed: number, more: string[] = []): Promise<number[]> {
    return this.generateInPython([
      ...["--max-tokens", String(maxTokens), "--temperature", String(temperature), "--seed", String(seed)],
      ...["--prompt", prompt, ...more],
    ]);
  }

  /** Token ids of what `pilotfish generate` answers. */
  async generateInPython(more: string[]): Promise<number[]> {
    const command = ["-m", "pilotfish", "generate", "--server", this.grpc, "--draft", "ngram", "--json", ...more];
    const { stdout } = await promisify(execFile)(PYTHON, command, { cwd: ROOT });
    const lines = stdout.trim().split("\n");
    return (JSON.parse(lines[lines.length - 1]) as { token_ids: number[] }).token_ids;
  }
}

/** As a browser would make it. */
export function nodeWorker(): WorkerLike {
  const worker = new Worker(new URL("./node_worker.js", import.meta.url));
  const like: WorkerLike = {
    postMessage: (message) => worker.postMessage(message),
    terminate: () => void worker.terminate(),
    onmessage: null,
    onerror: null,
  };
  worker.on("message", (data: FromWorker) => like.onmessage?.({ data }));
  worker.on("error", (error) => like.onerror?.({ message: String(error) }));
  return like;
}
