/**
 * JSON whose numbers keep their text, and Python's canonical form of it: seeds have 64 bits, and the checksum of a saved
 * generation is over what Python writes.
 */

/** A number as it stands in the text. */
export class NumberText {
  constructor(readonly text: string) {}

  /** A float as Python writes it. */
  static float(value: number): NumberText {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
      const [digits, exponent] = value.toExponential().split("e");
      return new NumberText(`${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`);
    }
    return new NumberText(Number.isInteger(value) ? `${value}.0` : String(value));
  }

  static integer(value: number | bigint): NumberText {
    return new NumberText(String(value));
  }
}

export type Json = null | boolean | string | NumberText | readonly Json[] | { readonly [key: string]: Json };

const TOKEN = /"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*/g;

/** Throws SyntaxError. */
export function parseJson(text: string): Json {
  JSON.parse(text); // so that nothing else than JSON is marked below
  const marked = text.replace(TOKEN, (token) => (token[0] === '"' ? `"s${token.slice(1)}` : `"n${token}"`));
  return unmarked(JSON.parse(marked));
}

function unmarked(value: unknown): Json {
  if (typeof value === "string") return value[0] === "n" ? new NumberText(value.slice(1)) : value.slice(1);
  if (Array.isArray(value)) return value.map(unmarked);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key.slice(1), unmarked(entry)]));
  }
  return value as null | boolean;
}

/** As `json.dumps(value, sort_keys=True, separators=(",", ":"))`. */
export function canonicalJson(value: Json): string {
  if (value instanceof NumberText) return value.text;
  if (typeof value === "string") {
    return JSON.stringify(value).replace(
      /[\u0080-\uffff]/g,
      (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
  }
  if (isList(value)) return `[${value.map(canonicalJson).join()}]`;
  if (typeof value === "object" && value !== null) {
    const keys = Object.keys(value).sort();
    return `{${keys.map((key) => `${canonicalJson(key)}:${canonicalJson(value[key])}`).join()}}`;
  }
  return String(value);
}

export function isList(value: Json): value is readonly Json[] {
  return Array.isArray(value);
}
