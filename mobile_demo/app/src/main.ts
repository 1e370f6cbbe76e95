/** The page: one client of the SDK, one answer at a time. */

import { apiKey } from "./api_key.js";
import { hideDownload, showDownload } from "./download_view.js";
import { EXAMPLES } from "./examples.js";
import { keepOffline, offerInstallation } from "./offline_copy.js";
import { element, say } from "./page.js";
import { PageState, showLink } from "./page_state.js";
import { Reachability } from "./reachability.js";
import { SettingsForm } from "./settings.js";
import { megabytes, readyInWords, wordsOf } from "./words.js";
import { Writing } from "./writing.js";
import { Client, type Drafter } from "../../sdk/src/index.js";

/** Set when the page is built: the file of the drafting worker. */
declare const WORKER: string;

const OFFLINE_AFTER_S = 2;

class Demo {
  private readonly state = new PageState();
  private readonly form = new SettingsForm();
  private readonly link = new Reachability();
  private readonly client: Client;
  private readonly writing: Writing;
  private reachable = false;
  private downloaded = 0;

  constructor() {
    this.client = new Client("", {
      workerUrl: new URL(WORKER, import.meta.url),
      apiKey: apiKey() ?? "",
      insecure: true, // the page itself came the same way
      offline: "draft",
      offlineAfterS: OFFLINE_AFTER_S,
      onDownload: ({ received, total }) => {
        this.downloaded = total;
        showDownload(received, total);
      },
    });
    this.writing = new Writing(this.client, this.state);
    this.form.changed = () => this.applyAtOnce();
    this.link.changed = (reachable) => void this.linkChanged(reachable);
    this.applyAtOnce();
    showExamples(this.form);
    offerInstallation();
    element("form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      void this.write();
    });
    element("prompt", HTMLTextAreaElement).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form", HTMLFormElement).requestSubmit();
    });
    element("stop", HTMLButtonElement).addEventListener("click", () => this.writing.stop());
  }

  async start(): Promise<void> {
    const kept = keepOffline();
    this.reachable = await this.link.ask();
    await this.prepare();
    // Said last: the page works without a network once everything is here.
    document.body.dataset["kept"] = (await kept.catch(() => false)) && this.drafter !== null ? "yes" : "no";
  }

  private get drafter(): Drafter | null {
    return this.client.drafter?.writes === true ? this.client.drafter : null;
  }

  private async prepare(): Promise<void> {
    if (this.state.busy) return;
    this.state.set("starting", "Fetching what this device needs.");
    try {
      await this.client.prepare();
      this.rest();
    } catch (error) {
      this.state.set("failed", wordsOf(error), "error");
    }
    hideDownload();
  }

  /** Say what can be done now. */
  private rest(): void {
    showLink(this.reachable ? "connected" : "away");
    say("about", aboutOf(this.drafter, this.downloaded));
    if (this.reachable) this.state.set("ready", readyInWords(this.drafter !== null, this.client.draftError));
    else if (this.drafter === null) {
      this.state.set("failed", "The cloud cannot be reached, and there is no draft model on this device yet.", "error");
    } else {
      this.state.set(
        "alone",
        "No link. The small model writes without the cloud; its text is dotted, and verified once the link is back.",
        "warn",
      );
    }
  }

  private async linkChanged(reachable: boolean): Promise<void> {
    this.reachable = reachable;
    if (this.state.busy || this.state.value === "starting") return;
    if (reachable && this.drafter === null) await this.prepare();
    else if (["ready", "alone", "failed"].includes(this.state.value)) this.rest();
    else showLink(reachable ? "connected" : "away");
  }

  private applyAtOnce(): void {
    const { hint, addedMs } = this.form.value;
    this.client.hint = hint;
    this.client.simulatedRoundTripS = addedMs / 1000;
  }

  private async write(): Promise<void> {
    if (this.state.busy || this.state.value === "starting") return;
    await this.writing.run(this.form.value);
    this.reachable = await this.link.ask();
    if (!this.state.busy) showLink(this.reachable ? "connected" : "away");
  }
}

function showExamples(form: SettingsForm): void {
  const group = element("examples", HTMLElement);
  for (const example of EXAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.name;
    button.addEventListener("click", () => {
      form.prompt = example.prompt;
      element("write", HTMLButtonElement).focus();
    });
    group.append(button);
  }
  if (form.prompt === "") form.prompt = EXAMPLES[0]?.prompt ?? "";
}

function aboutOf(drafter: Drafter | null, bytes: number): string {
  const nowhere = "Nothing is fetched from anywhere but the verifier that served this page.";
  if (drafter === null) return nowhere;
  const size = bytes > 0 ? `, ${megabytes(bytes)}` : "";
  return `On this device: ${drafter.name}${size}, one thread of WebAssembly. ${nowhere}`;
}

void new Demo().start();
