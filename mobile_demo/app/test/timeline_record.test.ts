/** The timeline's record of drafts, commits, rollbacks and lost links. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { TimelineRecord } from "../src/timeline_record.js";

function committed(at: number, position: number, tokens: number, rolledBack = 0) {
  return { kind: "committed", at, position, tokens, accepted: 0, rolledBack, bytes: 5 } as const;
}

test("heads run ahead of commits and fall back to them", () => {
  const record = new TimelineRecord(100);
  record.add({ kind: "connecting", at: 100, attempt: 1, length: 10 });
  record.add({ kind: "drafted", at: 100.1, tokens: 4, tookS: 0.01 });
  record.add(committed(100.2, 10, 3));
  assert.deepEqual([record.head, record.committed], [4, 3]);
  record.add(committed(100.3, 13, 1, 2));
  assert.deepEqual([record.head, record.committed, record.rolledBack], [4, 4, 2]);
  assert.match(record.summary(101), /In 1\.0 seconds: 4 tokens drafted, 4 committed in 2 steps, 2 drafts thrown away/);
});

test("a lost link is one absence until the next opening", () => {
  const record = new TimelineRecord(0, 0);
  record.add({ kind: "lost", at: 1, message: "gone", retryInS: 0.1 });
  record.add({ kind: "away", at: 3 });
  record.add({ kind: "opened", at: 5, fingerprint: "f", cachedTokens: 0 });
  assert.deepEqual(record.absences, [{ begin: 1, end: 5 }]);
});

test("a long answer keeps a bounded number of moments, and all rollbacks", () => {
  const record = new TimelineRecord(0, 0);
  for (let index = 0; index < 4000; index += 1) {
    record.add({ kind: "drafted", at: index, tokens: 1, tookS: 0 });
    record.add(committed(index + 0.5, index, 1, index % 100 === 0 ? 1 : 0));
  }
  assert.ok(record.moments.length <= 1500);
  assert.equal(record.moments.filter((moment) => moment.rolledBack > 0).length, 40);
});
