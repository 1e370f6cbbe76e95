/** The service worker, and that what this visit has fetched before it was there is kept as well. */

import { API_PATH, DRAFTS_PATH, MODEL_CACHE } from "./kept_paths.js";
import { element } from "./page.js";

/** Register, and say whether this page will work without a network: a service worker needs https, or localhost. */
export async function keepOffline(): Promise<boolean> {
  if (!("serviceWorker" in navigator)) return false;
  await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
  await navigator.serviceWorker.ready;
  return true;
}

/**
 * Keep what the verifier served to this page. The first visit fetches before the service worker is there to see it;
 * those answers are asked for again, which costs no second download: their bytes are in the browser's own cache.
 */
export async function keepServed(headers: Readonly<Record<string, string>>): Promise<void> {
  const cache = await caches.open(MODEL_CACHE);
  for (const entry of performance.getEntriesByType("resource")) {
    const url = new URL(entry.name);
    const ours = url.pathname.startsWith(API_PATH) || url.pathname.startsWith(DRAFTS_PATH);
    if (url.origin !== location.origin || !ours || (await cache.match(url.href)) !== undefined) continue;
    const answer = await fetch(url.href, { headers });
    if (answer.status === 200 && (await cache.match(url.href)) === undefined) await cache.put(url.href, answer);
  }
}

/** Browsers that can install the page say so with an event; the button appears then. */
export function offerInstallation(): void {
  const button = element("install", HTMLButtonElement);
  let offer: InstallEvent | null = null;
  window.addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    offer = event as InstallEvent;
    button.hidden = false;
  });
  button.addEventListener("click", () => {
    void offer?.prompt();
    offer = null;
    button.hidden = true;
  });
}

interface InstallEvent extends Event {
  prompt(): Promise<void>;
}
