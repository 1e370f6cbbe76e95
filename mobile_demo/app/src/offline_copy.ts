/** That the page starts without a network, and can be installed. */

import { element } from "./page.js";

/** Register, and say whether this page will work without a network: a service worker needs https, or localhost. */
export async function keepOffline(): Promise<boolean> {
  if (!("serviceWorker" in navigator)) return false;
  await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
  await navigator.serviceWorker.ready;
  return true;
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
