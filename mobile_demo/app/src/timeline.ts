/** The timeline on its canvas: time to the right, tokens upwards; the dashed line drafts, the full one is decided. */

import { element } from "./page.js";
import type { TimelineRecord } from "./timeline_record.js";

const PADDING = { left: 4, right: 4, top: 10, bottom: 18 };
const LEAST_SECONDS = 2;
const LEAST_TOKENS = 16;
const EVERY_MS = 80; // more often nobody sees, and the draft model wants the processor
const SUMMARY_EVERY_MS = 2000;

interface Colours {
  readonly ink: string;
  readonly draft: string;
  readonly accent: string;
  readonly line: string;
  readonly edge: string;
  readonly soft: string;
  readonly font: string;
}

export class Timeline {
  #record: TimelineRecord | null = null;
  #now: () => number = () => 0;
  #timer = 0;
  #summarised = -Infinity;
  readonly #canvas = element("timeline", HTMLCanvasElement);

  constructor() {
    new ResizeObserver(() => this.changed()).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.changed());
  }

  /** Draw this record from now on; `now` is the clock of its events, in seconds. */
  show(record: TimelineRecord, now: () => number): void {
    this.#record = record;
    this.#now = now;
    this.#summarised = -Infinity;
    this.changed();
  }

  changed(): void {
    if (this.#timer !== 0) return;
    this.#timer = window.setTimeout(() => {
      this.#timer = 0;
      requestAnimationFrame(() => this.#draw());
    }, EVERY_MS);
  }

  #draw(): void {
    const record = this.#record;
    const canvas = this.#canvas;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    const scale = Math.min(devicePixelRatio, 3);
    const context = canvas.getContext("2d");
    if (context === null || width === 0) return;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const colours = coloursOf(canvas);
    const seconds = Math.max(record === null ? 0 : record.lasted(this.#now()), LEAST_SECONDS);
    const most = record === null ? 0 : record.moments.reduce((top, moment) => Math.max(top, moment.head), 0);
    const tokens = Math.max(most, LEAST_TOKENS);
    const x = (at: number) => PADDING.left + (at / seconds) * (width - PADDING.left - PADDING.right);
    const y = (count: number) =>
      height - PADDING.bottom - (count / tokens) * (height - PADDING.top - PADDING.bottom);
    grid(context, colours, { width, height, seconds, tokens, x, y });
    if (record === null) return;
    absences(context, colours, record, { seconds, x, height });
    lines(context, colours, record, { x, y });
    this.#summarise(record);
  }

  #summarise(record: TimelineRecord): void {
    const now = performance.now();
    if (record.ended === null && now - this.#summarised < SUMMARY_EVERY_MS) return;
    this.#summarised = now;
    const words = record.summary(this.#now());
    if (this.#canvas.getAttribute("aria-label") !== words) this.#canvas.setAttribute("aria-label", words);
  }
}

type Scale = (value: number) => number;

function grid(
  context: CanvasRenderingContext2D,
  colours: Colours,
  to: { width: number; height: number; seconds: number; tokens: number; x: Scale; y: Scale },
): void {
  context.strokeStyle = colours.line;
  context.fillStyle = colours.soft;
  context.lineWidth = 1;
  context.font = colours.font;
  for (const count of ticks(to.tokens, 3)) {
    const at = Math.round(to.y(count)) + 0.5;
    context.beginPath();
    context.moveTo(PADDING.left, at);
    context.lineTo(to.width - PADDING.right, at);
    context.stroke();
    if (count > 0) context.fillText(`${count} tokens`, PADDING.left, at - 4);
  }
  context.textAlign = "center";
  for (const second of ticks(to.seconds, Math.max(2, Math.floor(to.width / 90)))) {
    if (second === 0) continue;
    const at = to.x(second);
    if (at < to.width - 16) context.fillText(`${second} s`, at, to.height - 4);
  }
  context.textAlign = "start";
}

function absences(
  context: CanvasRenderingContext2D,
  colours: Colours,
  record: TimelineRecord,
  to: { seconds: number; x: Scale; height: number },
): void {
  for (const absence of record.absences) {
    const begin = to.x(absence.begin);
    const end = to.x(absence.end ?? to.seconds);
    context.save();
    context.beginPath();
    context.rect(begin, PADDING.top, Math.max(end - begin, 2), to.height - PADDING.top - PADDING.bottom);
    context.clip();
    context.strokeStyle = colours.edge;
    context.lineWidth = 1;
    context.beginPath();
    for (let at = begin - to.height; at < end; at += 6) {
      context.moveTo(at, to.height);
      context.lineTo(at + to.height, 0);
    }
    context.stroke();
    context.restore();
  }
}

function lines(
  context: CanvasRenderingContext2D,
  colours: Colours,
  record: TimelineRecord,
  to: { x: Scale; y: Scale },
): void {
  const { moments } = record;
  const path = (value: (index: number) => number) => {
    context.beginPath();
    context.moveTo(to.x(0), to.y(0));
    let before = 0;
    moments.forEach((moment, index) => {
      context.lineTo(to.x(moment.at), to.y(before)); // nothing changes between two events: a staircase
      before = value(index);
      context.lineTo(to.x(moment.at), to.y(before));
    });
    context.stroke();
  };
  context.strokeStyle = colours.draft;
  context.lineWidth = 1.5;
  context.setLineDash([3, 2]);
  path((index) => moments[index]?.head ?? 0);
  context.setLineDash([]);
  context.strokeStyle = colours.ink;
  context.lineWidth = 2;
  path((index) => moments[index]?.committed ?? 0);
  context.strokeStyle = colours.accent;
  context.lineWidth = 2;
  context.beginPath();
  for (const moment of moments) {
    if (moment.rolledBack === 0) continue;
    context.moveTo(to.x(moment.at), to.y(moment.head));
    context.lineTo(to.x(moment.at), to.y(Math.max(moment.committed, 0)));
  }
  context.stroke();
}

/** Round numbers from 0 up to `most`, about `count` of them. */
function ticks(most: number, count: number): number[] {
  const rough = most / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) ?? rough;
  const found: number[] = [];
  for (let index = 0; index * step <= most; index += 1) found.push(Math.round(index * step * 100) / 100);
  return found;
}

function coloursOf(canvas: HTMLCanvasElement): Colours {
  const style = getComputedStyle(canvas);
  const named = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: named("ink"),
    draft: named("draft"),
    accent: named("accent"),
    line: named("line"),
    edge: named("edge"),
    soft: named("soft"),
    font: `12px ${style.fontFamily}`,
  };
}
