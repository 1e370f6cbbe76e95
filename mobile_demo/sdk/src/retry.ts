/** When to try again: exponential backoff with full jitter, the server's hint first (`retry.py`). */

export interface RetryPolicy {
  readonly maxAttempts: number; // without progress in between
  readonly maxFirstAttempts: number; // before any stream was ever opened
  readonly baseS: number;
  readonly capS: number;
  readonly hintCapS: number;
}

export const RETRY: RetryPolicy = { maxAttempts: 10, maxFirstAttempts: 4, baseS: 0.1, capS: 5, hintCapS: 120 };

/** Seconds to wait after `failures` consecutive failures; null to give up. `random` gives numbers in [0, 1). */
export function retryDelay(
  policy: RetryPolicy,
  failures: number,
  random: () => number,
  hintS: number | null,
  first: boolean,
): number | null {
  if (failures >= (first ? policy.maxFirstAttempts : policy.maxAttempts)) return null;
  const delay = Math.min(policy.capS, policy.baseS * 2 ** (failures - 1)) * random();
  return hintS === null ? delay : delay + Math.min(hintS, policy.hintCapS);
}
