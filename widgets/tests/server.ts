/** A server as the real one speaks: HTTP and a WebSocket on a port of its own. */
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { type WebSocket as Peer, WebSocketServer } from "ws";

export interface Asked {
  readonly method: string;
  readonly url: string;
  readonly body: string;
}

interface Answer {
  readonly status: number;
  readonly body: string;
}

export class TestServer {
  readonly asked: Asked[] = [];
  readonly said: unknown[] = [];
  readonly upgrades: string[] = [];
  answer: Answer = { status: 200, body: "{}" };
  readonly #http: Server;
  readonly #sockets: WebSocketServer;
  #peers: Peer[] = [];
  #waiting: (() => void)[] = [];

  private constructor() {
    this.#http = createServer((request, response) => {
      void body(request).then((text) => {
        this.asked.push({ method: request.method ?? "", url: request.url ?? "", body: text });
        response.writeHead(this.answer.status, { "Content-Type": "application/json" });
        response.end(this.answer.body);
      });
    });
    this.#sockets = new WebSocketServer({ server: this.#http });
    this.#sockets.on("connection", (peer, request) => {
      this.upgrades.push(request.url ?? "");
      this.#peers.push(peer);
      peer.on("message", (data: Buffer) => {
        this.said.push(JSON.parse(data.toString()));
        this.#happened();
      });
      this.#happened();
    });
  }

  static async start(): Promise<TestServer> {
    const server = new TestServer();
    await new Promise<void>((resolve) => server.#http.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get port(): number {
    return (this.#http.address() as AddressInfo).port;
  }

  /** Say something to all who listen; text goes as it is. */
  tell(message: unknown): void {
    for (const peer of this.#peers) {
      peer.send(typeof message === "string" ? message : JSON.stringify(message));
    }
  }

  /** Cut all connections. */
  cut(): void {
    const peers = this.#peers;
    this.#peers = [];
    peers.forEach((peer) => {
      peer.terminate();
    });
  }

  /** Wait until something is so; looked at whenever a connection or a message comes. */
  async until(so: () => boolean): Promise<void> {
    while (!so()) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  async stop(): Promise<void> {
    this.cut();
    this.#sockets.close();
    this.#http.closeAllConnections();
    await new Promise((resolve) => this.#http.close(resolve));
  }

  #happened(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    waiting.forEach((resolve) => {
      resolve();
    });
  }
}

async function body(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request) {
    parts.push(part as Buffer);
  }
  return Buffer.concat(parts).toString();
}
