/** The average that all estimates are made of (`averages.py`). */

/** Exponentially weighted; the first observations count evenly, so that it has no bias to a start. */
export class Average {
  count = 0;
  value: number | null = null;

  constructor(private readonly gain: number) {}

  observe(value: number): void {
    this.count += 1;
    if (this.value === null) this.value = value;
    else this.value += Math.max(this.gain, 1 / this.count) * (value - this.value);
  }

  /** Nothing was observed for a while: what is known counts less. */
  fade(towards: number, share: number): void {
    if (this.value !== null) this.value += share * (towards - this.value);
  }

  orElse(otherwise: number): number {
    return this.value ?? otherwise;
  }
}
