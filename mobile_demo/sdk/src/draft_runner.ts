/** One generation's drafter context: runs the tasks that a core asks for (`drafting.py`). */

import type { DraftTask } from "./device_actions.js";
import type { DraftContext, Drafter } from "./drafter.js";
import { LocalError } from "./errors.js";
import type { Generation } from "./generation.js";

/** `done` is called with the result of each task; a token outside the vocabulary counts as a failure of the drafter. */
export class DraftRunner {
  private context: DraftContext | null = null;
  private closed = false;

  constructor(
    private readonly drafter: Drafter,
    private readonly generation: Generation,
    private readonly vocabSize: number,
    private readonly done: (tokens: readonly number[] | null, error: string) => void,
  ) {}

  /** Start a task. */
  begin(task: DraftTask): void {
    this.draft(task).then(
      (tokens) => this.report(tokens, ""),
      (error: unknown) => this.report(null, error instanceof Error ? `${error.name}: ${error.message}` : String(error)),
    );
  }

  close(): void {
    this.closed = true;
    this.context?.close();
  }

  private report(tokens: readonly number[] | null, error: string): void {
    if (!this.closed) this.done(tokens, error);
  }

  private async draft(task: DraftTask): Promise<readonly number[]> {
    this.context ??= this.drafter.open(this.generation.params, this.generation.prompt.length);
    const tokens = (await this.context.draft(task.keep, task.extend, task.count)).slice(0, task.count);
    const strange = tokens.find((token) => !(Number.isInteger(token) && token >= 0 && token < this.vocabSize));
    if (strange !== undefined) {
      throw new LocalError(`it proposed token id ${strange}, outside the vocabulary of ${this.vocabSize}`);
    }
    return tokens;
  }
}
