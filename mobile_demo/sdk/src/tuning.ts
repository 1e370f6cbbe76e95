/** The policy's constants that were chosen by trying (`tuning.py`, which says how). */

export interface DraftTuning {
  readonly worth: number;
  readonly flushShare: number;
  readonly enough: number;
  readonly burst: number;
  readonly burstShare: number;
  readonly settled: number;
  readonly trouble: number;
  readonly hysteresis: number;
  readonly rivalry: number;
}

export const DRAFT_TUNING: DraftTuning = {
  worth: 0.05,
  flushShare: 0.1,
  enough: 6,
  burst: 8,
  burstShare: 0.25,
  settled: 8,
  trouble: 0.035,
  hysteresis: 0.015,
  rivalry: 0.04,
};
