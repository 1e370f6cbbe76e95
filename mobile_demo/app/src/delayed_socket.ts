/**
 * A WebSocket that is farther away: what goes up and what comes down is held for half of an added round trip each. It
 * happens in this page, above TCP: the added distance also delays the opening, but no packet is lost or reordered and
 * TCP's own behaviour over a long way (slow start, retransmissions) is not imitated; `pilotfish-sim link` does more.
 */

/** The dial. One for all sockets; turning it holds what is sent from then on, never reordering it. */
export class Distance {
  #addedMs = 0;

  /** Added to each round trip, in milliseconds. */
  get addedMs(): number {
    return this.#addedMs;
  }

  set addedMs(value: number) {
    if (!Number.isFinite(value) || value < 0) throw new RangeError(`added round trip is ${value}; expected 0 or more`);
    this.#addedMs = value;
  }

  get oneWayMs(): number {
    return this.#addedMs / 2;
  }
}

type Event_ = "open" | "message" | "close" | "error";

/** Passes things on in order, each one not before its time. */
class Lane {
  #queue: { readonly due: number; readonly run: () => void }[] = [];
  #timer = 0;
  readonly #distance: Distance;

  constructor(distance: Distance) {
    this.#distance = distance;
  }

  get length(): number {
    return this.#queue.length;
  }

  put(run: () => void): void {
    const wait = this.#distance.oneWayMs;
    if (wait === 0 && this.#queue.length === 0) {
      run();
      return;
    }
    const before = this.#queue.at(-1)?.due ?? 0;
    this.#queue.push({ due: Math.max(performance.now() + wait, before), run });
    this.#arm();
  }

  clear(): void {
    this.#queue = [];
    window.clearTimeout(this.#timer);
    this.#timer = 0;
  }

  #arm(): void {
    const first = this.#queue[0];
    if (this.#timer !== 0 || first === undefined) return;
    this.#timer = window.setTimeout(
      () => {
        this.#timer = 0;
        while (this.#queue[0] !== undefined && this.#queue[0].due <= performance.now() + 0.5) {
          this.#queue.shift()?.run();
        }
        this.#arm();
      },
      Math.max(first.due - performance.now(), 0),
    );
  }
}

/** As `WebSocket`, in what the SDK uses of it: send, close, events, `bufferedAmount`, `readyState`, `protocol`. */
export class DelayedSocket extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSING = 2;
  readonly CLOSED = 3;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: CloseEvent) => void) | null = null;
  onerror: ((event: Event) => void) | null = null;
  #state = 0;
  #held = 0;
  readonly #inner: WebSocket;
  readonly #up: Lane;
  readonly #down: Lane;

  constructor(distance: Distance, url: string | URL, protocols?: string | string[]) {
    super();
    this.#inner = new WebSocket(url, protocols);
    this.#inner.binaryType = "arraybuffer";
    this.#up = new Lane(distance);
    this.#down = new Lane(distance);
    for (const kind of ["open", "message", "close", "error"] as const) {
      this.#inner.addEventListener(kind, (event) => this.#down.put(() => this.#pass(kind, event)));
    }
  }

  get readyState(): number {
    return this.#state;
  }

  get url(): string {
    return this.#inner.url;
  }

  get protocol(): string {
    return this.#inner.protocol;
  }

  get extensions(): string {
    return this.#inner.extensions;
  }

  get bufferedAmount(): number {
    return this.#inner.bufferedAmount + this.#held;
  }

  get binaryType(): BinaryType {
    return this.#inner.binaryType;
  }

  set binaryType(kind: BinaryType) {
    this.#inner.binaryType = kind;
  }

  send(data: string | ArrayBuffer | ArrayBufferView<ArrayBuffer>): void {
    if (this.#state !== this.OPEN) throw new DOMException("the socket is not open", "InvalidStateError");
    // A copy: who sends may write over its buffer at once.
    const kept = typeof data === "string" ? data : copyOf(data);
    const size = typeof kept === "string" ? kept.length : kept.byteLength;
    this.#held += size;
    this.#up.put(() => {
      this.#held -= size;
      if (this.#inner.readyState === WebSocket.OPEN) this.#inner.send(kept);
    });
  }

  close(code?: number, reason?: string): void {
    if (this.#state >= this.CLOSING) return;
    this.#state = this.CLOSING;
    this.#up.put(() => this.#inner.close(code, reason));
  }

  #pass(kind: Event_, event: Event): void {
    if (kind === "open") {
      if (this.#state !== this.CONNECTING) return;
      this.#state = this.OPEN;
    }
    if (kind === "close") {
      this.#state = this.CLOSED;
      this.#up.clear();
      this.#held = 0;
    }
    const copy = copyOfEvent(kind, event);
    this.dispatchEvent(copy);
    if (copy instanceof MessageEvent) this.onmessage?.(copy);
    else if (copy instanceof CloseEvent) this.onclose?.(copy);
    else if (kind === "open") this.onopen?.(copy);
    else this.onerror?.(copy);
  }
}

function copyOf(data: ArrayBuffer | ArrayBufferView<ArrayBuffer>): ArrayBuffer {
  if (data instanceof ArrayBuffer) return data.slice(0);
  return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
}

function copyOfEvent(kind: Event_, event: Event): Event {
  if (event instanceof MessageEvent) return new MessageEvent(kind, { data: event.data as unknown, origin: event.origin });
  if (event instanceof CloseEvent) {
    return new CloseEvent(kind, { code: event.code, reason: event.reason, wasClean: event.wasClean });
  }
  return new Event(kind);
}
