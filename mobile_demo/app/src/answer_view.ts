/** The sheet: the prompt's echo, the answer by origin, and what is drafted beyond it. Drawn once a frame at most. */

import { AnswerText, type Run } from "./answer_text.js";
import { element } from "./page.js";

/** So close to its end the sheet follows the text. */
const NEAR_END_PX = 48;

export class AnswerView {
  #text = new AnswerText();
  #ahead = "";
  #frame = 0;
  #follows = true;
  readonly #sheet = element("sheet", HTMLElement);
  readonly #spans = element("spans", HTMLElement);
  readonly #aheadSpan = element("ahead", HTMLElement);

  constructor() {
    // Who scrolls up to read is not pulled down again until they are back at the end.
    this.#sheet.addEventListener("scroll", () => {
      const left = this.#sheet.scrollHeight - this.#sheet.scrollTop - this.#sheet.clientHeight;
      this.#follows = left < NEAR_END_PX;
    });
  }

  get text(): AnswerText {
    return this.#text;
  }

  /** An empty sheet that begins with the prompt. */
  begin(prompt: string): void {
    this.#text = new AnswerText();
    this.#ahead = "";
    this.#follows = true;
    element("invitation", HTMLElement).hidden = true;
    element("echo", HTMLElement).textContent = prompt;
    this.#spans.replaceChildren();
    this.#aheadSpan.textContent = "";
    this.#sheet.setAttribute("aria-busy", "true");
    this.#sheet.scrollTop = 0;
    this.#sheet.scrollIntoView({ block: "nearest" });
  }

  end(): void {
    this.#ahead = "";
    this.#sheet.setAttribute("aria-busy", "false");
    this.changed();
  }

  /** What runs ahead of the text, unchecked. */
  set ahead(text: string) {
    if (text === this.#ahead) return;
    this.#ahead = text;
    this.changed();
  }

  /** Draw with the next frame. */
  changed(): void {
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = 0;
        this.#draw();
      });
    }
  }

  #draw(): void {
    const { runs } = this.#text;
    const from = this.#text.takeDirty();
    const children = this.#spans.children;
    while (children.length > runs.length) children[children.length - 1]?.remove();
    for (let index = from; index < runs.length; index += 1) {
      const run = runs[index] as Run;
      const old = children[index];
      const names = classesOf(run);
      if (old instanceof HTMLElement && old.dataset["names"] === names) {
        if (old.textContent !== run.text) old.textContent = run.text;
        continue;
      }
      const span = document.createElement("span");
      span.className = `fresh ${names}`;
      span.dataset["names"] = names;
      span.textContent = run.text;
      if (old === undefined) this.#spans.append(span);
      else old.replaceWith(span);
    }
    if (this.#aheadSpan.textContent !== this.#ahead) this.#aheadSpan.textContent = this.#ahead;
    if (this.#follows) this.#sheet.scrollTop = this.#sheet.scrollHeight;
  }
}

function classesOf(run: Run): string {
  if (run.origin === "recovered" && run.text.trim() === "") return "recovered blank"; // no line under mere space
  return run.revised ? `${run.origin} revised` : run.origin;
}
