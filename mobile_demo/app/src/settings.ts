/** What the person has set: in the form, in the address (`?prompt=...&arm=...`), and kept for the next visit. */

import { ARMS, type Arm, type Hint } from "../../sdk/src/index.js";
import { element, say } from "./page.js";
import { ARM_NAMES, ARM_NOTES } from "./words.js";

const KEPT = "pilotfish-settings";

export interface Settings {
  readonly prompt: string;
  readonly arm: Arm;
  readonly hint: Hint;
  readonly addedMs: number;
  readonly temperature: number;
  readonly seed: string;
  readonly maxTokens: number;
}

/** The fields, by the name they have in the address and in what is kept. */
const FIELDS = {
  prompt: "prompt",
  delay: "delay",
  temperature: "temperature",
  seed: "seed",
  max_tokens: "max-tokens",
} as const;
const HINTS = { battery_low: "battery-low", metered: "metered", prefer_fast: "prefer-fast" } as const;

export class SettingsForm {
  /** Called with each change; what changes at once (distance, hints) is applied there. */
  changed: () => void = () => undefined;

  constructor() {
    this.#makeArms();
    this.#fill(kept());
    this.#fill(Object.fromEntries(new URLSearchParams(location.search)));
    this.#show();
    document.body.addEventListener("input", () => {
      this.#show();
      this.changed();
      localStorage.setItem(KEPT, JSON.stringify(this.#values()));
    });
  }

  get value(): Settings {
    return {
      prompt: this.prompt,
      arm: this.#arm(),
      hint: {
        batteryLow: element("battery-low", HTMLInputElement).checked,
        meteredNetwork: element("metered", HTMLInputElement).checked,
        preferFast: element("prefer-fast", HTMLInputElement).checked,
      },
      addedMs: element("delay", HTMLInputElement).valueAsNumber,
      temperature: element("temperature", HTMLInputElement).valueAsNumber,
      seed: element("seed", HTMLInputElement).value.trim(),
      maxTokens: element("max-tokens", HTMLInputElement).valueAsNumber,
    };
  }

  get prompt(): string {
    return element("prompt", HTMLTextAreaElement).value;
  }

  set prompt(text: string) {
    const field = element("prompt", HTMLTextAreaElement);
    field.value = text;
    field.dispatchEvent(new InputEvent("input", { bubbles: true }));
  }

  #makeArms(): void {
    const group = element("arms", HTMLElement);
    for (const arm of ARMS) {
      const label = document.createElement("label");
      label.className = "choice";
      const input = document.createElement("input");
      input.type = "radio";
      input.name = "arm";
      input.value = arm;
      input.checked = arm === "auto";
      input.setAttribute("aria-describedby", "arm-note");
      label.append(input, ARM_NAMES[arm]);
      group.append(label);
    }
  }

  #arm(): Arm {
    const chosen = document.querySelector<HTMLInputElement>('input[name="arm"]:checked')?.value;
    return ARMS.find((arm) => arm === chosen) ?? "auto";
  }

  #fill(values: Readonly<Record<string, string>>): void {
    for (const [name, id] of Object.entries(FIELDS)) {
      const value = values[name];
      const field = document.getElementById(id);
      if (value === undefined) continue;
      if (field instanceof HTMLInputElement || field instanceof HTMLTextAreaElement) field.value = value;
    }
    for (const [name, id] of Object.entries(HINTS)) {
      if (values[name] !== undefined) element(id, HTMLInputElement).checked = values[name] === "1";
    }
    const arm = ARMS.find((known) => known === values["arm"]);
    const radio = arm && document.querySelector<HTMLInputElement>(`input[name="arm"][value="${arm}"]`);
    if (radio) radio.checked = true;
  }

  #values(): Record<string, string> {
    const values: Record<string, string> = { arm: this.#arm() };
    for (const [name, id] of Object.entries(FIELDS)) {
      const field = document.getElementById(id);
      if (field instanceof HTMLInputElement || field instanceof HTMLTextAreaElement) values[name] = field.value;
    }
    for (const [name, id] of Object.entries(HINTS)) values[name] = element(id, HTMLInputElement).checked ? "1" : "0";
    return values;
  }

  /** What is written beside the dials. */
  #show(): void {
    const { addedMs, temperature, arm } = this.value;
    say("delay-shown", `+${addedMs} ms`);
    say("temperature-shown", temperature === 0 ? "0, the likeliest" : temperature.toFixed(1));
    say("arm-note", `${ARM_NOTES[arm]} From the next text on.`);
  }
}

function kept(): Record<string, string> {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    if (typeof value !== "object" || value === null) return {};
    return Object.fromEntries(
      Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
    );
  } catch {
    return {}; // of an older page, or damaged: begin with the usual values
  }
}
