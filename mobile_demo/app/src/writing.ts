/** One answer on the page, from the press of the button to its last word. */

import { AnswerView } from "./answer_view.js";
import { showFigures } from "./figures.js";
import { type PageState, showLink } from "./page_state.js";
import type { Settings } from "./settings.js";
import { TimelineRecord } from "./timeline_record.js";
import { Timeline } from "./timeline.js";
import { doneInWords, retryInWords, wordsOf } from "./words.js";
import type { Client, Result, Stream } from "../../sdk/src/index.js";

const FIGURES_EVERY_MS = 250;

export class Writing {
  private readonly view = new AnswerView();
  private readonly timeline = new Timeline();
  private record = new TimelineRecord(0);
  private stream: Stream | null = null;
  private begun = 0;
  private figuresAt = 0;

  constructor(
    private readonly client: Client,
    private readonly state: PageState,
  ) {}

  stop(): void {
    this.stream?.cancel();
  }

  /** Write on from the prompt; returns when it has ended, in whatever way. */
  async run(settings: Settings): Promise<void> {
    this.begun = performance.now();
    this.record = new TimelineRecord(this.begun / 1000);
    this.timeline.show(this.record, () => performance.now() / 1000);
    this.view.begin(settings.prompt);
    this.state.set("writing", settings.arm === "device-only" ? "Writing alone. Nothing is sent." : "Writing.");
    const frames = { running: true };
    const eachFrame = (): void => {
      if (!frames.running) return;
      this.show();
      requestAnimationFrame(eachFrame);
    };
    try {
      this.client.arm = settings.arm;
      const stream = this.client.generate(settings.prompt, {
        maxTokens: settings.maxTokens,
        temperature: settings.temperature,
        ...(settings.seed === "" ? {} : { seed: settings.seed }),
        onEvent: (event) => {
          this.record.add(event);
          this.timeline.changed();
        },
      });
      this.stream = stream;
      requestAnimationFrame(eachFrame);
      for await (const piece of stream) {
        this.view.text.apply(piece);
        this.view.changed();
      }
      this.ended(await stream.result(), settings);
    } catch (error) {
      this.state.set("failed", wordsOf(error), "error");
    } finally {
      frames.running = false;
      this.stream = null;
      this.view.end();
      this.timeline.changed();
    }
  }

  /** What changes from frame to frame without a piece. */
  private show(): void {
    const { stream } = this;
    if (stream === null) return;
    this.view.ahead = stream.draftText;
    const now = performance.now();
    if (now - this.figuresAt < FIGURES_EVERY_MS) return;
    this.figuresAt = now;
    const figures = stream.figures;
    if (figures === null) return;
    showFigures(figures, figures.tokensPerS);
    this.timeline.changed();
    if (stream.offline) {
      showLink("away");
      this.state.set("away", "The link is away. This device writes alone; what is dotted is not verified yet.", "warn");
    } else if (figures.state === "waiting" || figures.state === "connecting") {
      showLink(figures.state === "waiting" ? "away" : "waiting");
      if (figures.state === "waiting") this.state.set("writing", retryInWords(figures.retryInS), "warn");
    } else if (figures.state === "streaming") {
      showLink("connected", figures.policy.roundTripMs);
      if (this.state.value === "away") this.state.set("writing", "The link is back; the cloud decides about the dotted text.");
    }
  }

  private ended(result: Result, settings: Settings): void {
    if (result.verified) this.view.text.settle(result.text, result.unverifiedText);
    const { stream } = this;
    if (stream?.figures) showFigures(stream.figures, result.metrics.tokensPerS);
    this.state.set(
      result.finishReason === "abort" ? "stopped" : "done",
      doneInWords(result, settings.arm === "device-only"),
    );
  }
}
