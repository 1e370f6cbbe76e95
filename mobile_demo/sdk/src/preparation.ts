/** What a client needs before its first answer: a drafter and a tokenizer that fit together (`preparation.py`). */

import type { Drafter } from "./drafter.js";
import { InvalidRequest, TokenizerMismatch, Unavailable } from "./errors.js";
import type { FileCache } from "./file_cache.js";
import { NgramDrafter } from "./ngram.js";
import type { Tokenizer } from "./tokenizer.js";
import type { Transport } from "./transport.js";
import { type DraftOffer, type ServedModel, servedModel, servedTokenizer } from "./verifier_http.js";
import { WorkerDrafter, type WorkerLike } from "./worker_drafter.js";
import type { DownloadProgress } from "./worker_messages.js";

export type DraftChoice = "auto" | "ngram" | null | Drafter;

export interface PreparationOptions {
  readonly draft: DraftChoice;
  readonly tokenizer: Tokenizer | null;
  readonly model: string;
  readonly transport: Transport;
  readonly cache: FileCache;
  readonly wasmUrl: string | undefined;
  readonly threads: number | undefined;
  readonly makeWorker: (() => WorkerLike) | null;
  readonly onDownload: ((progress: DownloadProgress) => void) | undefined;
}

/** Obtains both once, for all who ask. What failed is tried again by the next who asks. */
export class Preparation {
  drafter: Drafter | null = null;
  tokenizer: Tokenizer | null = null;
  /** Why the verifier's draft model is not in use; the answers do not depend on it. */
  failure: Error | null = null;
  private readonly own: Drafter[] = []; // made here
  private running: Promise<void> | null = null;
  private fetching: Promise<void> | null = null;
  private offer: DraftOffer | null = null;
  private freed = false;

  constructor(private readonly options: PreparationOptions) {}

  run(): Promise<void> {
    this.running ??= this.prepare().finally(() => {
      if (this.tokenizer === null) this.running = null;
    });
    return this.running.then(() => this.fetchAgain());
  }

  /** Wait for a draft model that is being fetched, after `run`. */
  async complete(): Promise<void> {
    await this.fetching;
  }

  /** Close what was made here. */
  free(): void {
    this.freed = true;
    for (const drafter of this.own.splice(0)) drafter.close();
  }

  private async prepare(): Promise<void> {
    const { draft, transport, model, cache } = this.options;
    const offline = transport.addresses.length === 0;
    let served: ServedModel | null = null;
    if (!offline && (draft === "auto" || this.options.tokenizer === null)) {
      served = await servedModel(transport, model, cache);
    }
    let tokenizer = this.options.tokenizer;
    if (tokenizer === null) {
      if (served === null) throw new InvalidRequest("without a verifier a tokenizer must be given");
      tokenizer = await servedTokenizer(transport, served, cache);
    }
    if (draft !== null && typeof draft === "object") {
      checkFit(draft, tokenizer);
      this.drafter = draft;
    } else {
      this.drafter = draft === null ? null : new NgramDrafter();
    }
    this.offer = draft === "auto" ? (served?.drafts[0] ?? null) : null;
    this.tokenizer = tokenizer;
  }

  private fetchAgain(): void {
    const again = this.fetching === null || this.failure instanceof Unavailable;
    if (this.offer === null || this.tokenizer === null || !again || this.drafter?.writes === true) return;
    this.failure = null;
    this.fetching = this.fetch(this.offer, this.tokenizer).catch((error: unknown) => {
      this.failure = error instanceof Error ? error : new Error(String(error));
    });
  }

  private async fetch(offer: DraftOffer, tokenizer: Tokenizer): Promise<void> {
    const { makeWorker, transport, wasmUrl, threads, onDownload } = this.options;
    if (makeWorker === null) throw new InvalidRequest("workerUrl says where drafter_worker.js is; it was left out");
    const sameHost = transport.addresses.some(({ http }) => offer.url.startsWith(`${http}/`));
    const drafter = await WorkerDrafter.load(makeWorker(), offer, {
      headers: sameHost ? transport.headers : {},
      wasmUrl,
      threads,
      onDownload,
    });
    try {
      checkFit(drafter, tokenizer);
    } catch (error) {
      drafter.close();
      throw error;
    }
    if (this.freed) {
      drafter.close();
      return;
    }
    this.own.push(drafter);
    this.drafter = drafter; // generations that run go on with what they have
  }
}

function checkFit(drafter: Drafter, tokenizer: Tokenizer): void {
  if (drafter.tokenizerHash !== null && drafter.tokenizerHash !== tokenizer.hash) {
    throw new TokenizerMismatch(
      `the drafter ${drafter.name} was made for tokenizer ${drafter.tokenizerHash.slice(0, 12)}, the one in use is ` +
        `${tokenizer.hash.slice(0, 12)}: a draft model must share its target's vocabulary`,
    );
  }
}
