/** The server extension as seen from a front end: REST for what is asked, one WebSocket for what happens. */
import * as v from "valibot";

import type { Model } from "./model";
import { type Action, type Job, type Request, toJob, toMessage, toVMs, type VM } from "./wire";

export interface ClientSettings {
  /** The server's base address, with or without a slash at its end; `wsUrl` its WebSocket twin. */
  readonly baseUrl: string;
  readonly wsUrl: string;
  /** For the WebSocket's address where the browser has no cookie of the server; "" is none. */
  readonly token: string;
  /** Sends a request with the credentials and the XSRF header (JupyterLab: `ServerConnection.makeRequest`). */
  fetch(url: string, init: RequestInit): Promise<Response>;
}

/** The server refused, or was not reached: one line of what happened, and what to do about it. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly hint: string,
    readonly context: readonly string[],
    /** The HTTP status; 0 when no answer came. */
    readonly status: number,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

const failureSchema = v.object({
  message: v.string(),
  hint: v.optional(v.string(), ""),
  context: v.optional(v.array(v.string()), []),
});
const templateSchema = v.object({ name: v.string() });
const environmentSchema = v.object({
  name: v.string(),
  displayName: v.string(),
  instance: v.string(),
  file: v.string(),
});
const templatesSchema = v.object({ templates: v.array(templateSchema) });
const environmentsSchema = v.object({ environments: v.array(environmentSchema) });
const vmsSchema = v.object({ vms: v.array(v.unknown()) });
const linesSchema = v.object({ lines: v.array(v.string()) });
const nameSchema = v.object({ name: v.string() });

export type Template = Readonly<v.InferOutput<typeof templateSchema>>;
export type Environment = Readonly<v.InferOutput<typeof environmentSchema>>;

const API = "lima-kernels/api/";
/** Milliseconds until the first new try, and at most between two. */
const FIRST_WAIT = 500;
const LONGEST_WAIT = 30_000;

function joined(base: string, path: string): string {
  return `${base.replace(/\/$/, "")}/${API}${path}`;
}

function path(...parts: string[]): string {
  return parts.map(encodeURIComponent).join("/");
}

/** One client of the server extension; it feeds the model with what happens until it is disposed of. */
export class Client {
  readonly #listeners = new Set<(connected: boolean) => void>();
  #socket: WebSocket | null = null;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #wait = FIRST_WAIT;
  #connected = false;
  #shown: readonly string[] | null = null;
  #followed: string | null = null;
  #disposed = false;
  readonly #onVisibility = (): void => {
    this.#send(this.#visible());
    // A laptop that wakes up need not wait for the next try.
    if (!document.hidden && this.#timer !== null) {
      this.#wait = FIRST_WAIT;
      this.connect();
    }
  };

  constructor(
    private readonly settings: ClientSettings,
    private readonly model: Model,
  ) {
    document.addEventListener("visibilitychange", this.#onVisibility);
  }

  get connected(): boolean {
    return this.#connected;
  }

  /** Begin to listen; a lost connection is made again, later and later. */
  connect(): void {
    if (this.#disposed || this.#socket !== null) {
      return;
    }
    this.#forgetTimer();
    const { wsUrl, token } = this.settings;
    const query = token === "" ? "" : `?token=${encodeURIComponent(token)}`;
    const socket = new WebSocket(joined(wsUrl, "events") + query);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      this.#wait = FIRST_WAIT;
      this.#send(this.#visible());
      this.#send({ type: "follow", name: this.#followed });
      this.#tell(true);
    });
    socket.addEventListener("message", (event: MessageEvent<unknown>) => {
      this.#receive(event.data);
    });
    socket.addEventListener("close", () => {
      this.#lost(socket);
    });
  }

  dispose(): void {
    this.#disposed = true;
    document.removeEventListener("visibilitychange", this.#onVisibility);
    this.#forgetTimer();
    this.#listeners.clear();
    this.#socket?.close();
    this.#socket = null;
  }

  /** Call `listener` when the connection comes or goes; returns what ends it. */
  onConnection(listener: (connected: boolean) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  /** Say whose usage is drawn now: null is all, [] none. A hidden page shows none, whatever was said. */
  show(names: readonly string[] | null): void {
    this.#shown = names;
    this.#send(this.#visible());
  }

  /** Say whose log is wanted; its lines come to the model's listeners. */
  follow(name: string | null): void {
    this.#followed = name;
    this.#send({ type: "follow", name });
  }

  /** Ask for a verb; returns its job, which goes on in the model. */
  async act(vm: string, action: Action): Promise<Job> {
    const { verb, ...rest } = action;
    switch (action.verb) {
      case "create":
        return this.#job("POST", "vms", rest);
      case "edit":
        return this.#job("PATCH", path("vms", vm), rest);
      case "delete":
        return this.#job("DELETE", `${path("vms", vm)}${action.force === true ? "?force=1" : ""}`);
      case "start":
      case "stop":
      case "hibernate":
      case "restart":
        return this.#job("POST", path("vms", vm, verb), rest);
    }
  }

  async cancel(job: string): Promise<void> {
    await this.#answer("DELETE", path("jobs", job));
  }

  async vms(): Promise<VM[]> {
    return toVMs((await this.#read(vmsSchema, "vms")).vms);
  }

  async log(vm: string, lines = 200): Promise<string[]> {
    return (await this.#read(linesSchema, `${path("vms", vm, "log")}?lines=${lines}`)).lines;
  }

  async templates(): Promise<Template[]> {
    return (await this.#read(templatesSchema, "templates")).templates;
  }

  async environments(): Promise<Environment[]> {
    return (await this.#read(environmentsSchema, "environments")).environments;
  }

  /** Return the name of a running Jupyter kernel's VM; null when the kernel is not ours. */
  async kernelVM(kernel: string): Promise<string | null> {
    try {
      return (await this.#read(nameSchema, path("kernels", kernel, "vm"))).name;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        return null;
      }
      throw error;
    }
  }

  async #job(method: string, where: string, body?: object): Promise<Job> {
    const job = toJob(await this.#json(method, where, body));
    if (job === null) {
      throw new ApiError("The server's answer is no job.", "Are its version and the page's the same? Reload.", [], 0);
    }
    // The event may have come before this answer and be newer.
    if (!this.model.jobs.has(job.id)) {
      this.model.apply({ type: "job", job });
    }
    return job;
  }

  async #read<S extends v.GenericSchema>(schema: S, where: string): Promise<v.InferOutput<S>> {
    const result = v.safeParse(schema, await this.#json("GET", where));
    if (!result.success) {
      const what = `The server's answer to ${where} is not as expected: ${result.issues[0].message}`;
      throw new ApiError(what, "Are its version and the page's the same? Reload.", [], 0);
    }
    return result.output;
  }

  async #json(method: string, where: string, body?: object): Promise<unknown> {
    const response = await this.#answer(method, where, body);
    return response.json();
  }

  async #answer(method: string, where: string, body?: object): Promise<Response> {
    const init: RequestInit =
      body === undefined
        ? { method }
        : { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    let response: Response;
    try {
      response = await this.settings.fetch(joined(this.settings.baseUrl, where), init);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new ApiError(`The Jupyter server was not reached: ${reason}`, "Does it still run?", [], 0);
    }
    if (!response.ok) {
      throw await failure(response);
    }
    return response;
  }

  #receive(data: unknown): void {
    let parsed: unknown = null;
    try {
      parsed = JSON.parse(String(data));
    } catch {
      console.warn("lima-kernels: dropped a message that is no JSON");
    }
    const message = toMessage(parsed);
    if (message !== null) {
      this.model.apply(message);
    }
  }

  #visible(): Request {
    return { type: "visible", names: document.hidden ? [] : this.#shown };
  }

  #send(request: Request): void {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify(request));
    }
  }

  #lost(socket: WebSocket): void {
    if (this.#socket !== socket) {
      return;
    }
    this.#socket = null;
    this.#tell(false);
    // All clients of a server that restarts would come back in one instant.
    const wait = this.#wait * (0.5 + Math.random());
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT);
    this.#timer = setTimeout(() => {
      this.connect();
    }, wait);
  }

  #tell(connected: boolean): void {
    if (this.#connected !== connected) {
      this.#connected = connected;
      for (const listener of [...this.#listeners]) {
        listener(connected);
      }
    }
  }

  #forgetTimer(): void {
    if (this.#timer !== null) {
      clearTimeout(this.#timer);
      this.#timer = null;
    }
  }
}

async function failure(response: Response): Promise<ApiError> {
  const body: unknown = await response.json().catch(() => null);
  const said = v.safeParse(failureSchema, body);
  if (said.success) {
    return new ApiError(said.output.message, said.output.hint, said.output.context, response.status);
  }
  const what = `The server answered ${response.status} ${response.statusText}`.trimEnd();
  return new ApiError(`${what}.`, "", [], response.status);
}
