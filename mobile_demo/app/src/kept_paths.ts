/** What page and service worker keep of the verifier's answers, and where. */

/** Describe, tokenizer and chat template. */
export const API_PATH = "/pilotfish/v1/";
/** The files of draft models. */
export const DRAFTS_PATH = "/v1/drafts";
/** The cache of both. */
export const MODEL_CACHE = "pilotfish-model";
