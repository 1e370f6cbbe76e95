/** The API key: it comes behind `#key=` of the address, which is never sent, and is kept for the next visit. */

const KEPT = "pilotfish-key";

/** The key to show to the verifier, if any. What the address says is taken out of it, so that it is not shared by chance. */
export function apiKey(): string | null {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given !== null && given !== "") {
    localStorage.setItem(KEPT, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return localStorage.getItem(KEPT);
}
