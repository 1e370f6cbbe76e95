/** How far the draft model has come. */

import { element, say } from "./page.js";
import { megabytes } from "./words.js";

/** `total` 0: not known yet. Both in bytes. */
export function showDownload(received: number, total: number): void {
  const bar = element("download-bar", HTMLProgressElement);
  element("download", HTMLElement).hidden = false;
  if (total > 0) bar.value = received / total;
  else bar.removeAttribute("value");
  const of = total > 0 ? ` of ${megabytes(total)}` : "";
  say("download-words", `Fetching the draft model: ${megabytes(received)}${of}`);
}

export function hideDownload(): void {
  element("download", HTMLElement).hidden = true;
}
