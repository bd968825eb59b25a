import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { WebSocket as NodeWebSocket } from "ws";

import { ApiError, Client } from "../src/api";
import { Model } from "../src/model";
import { job, vm } from "./samples";
import { TestServer } from "./server";

let server: TestServer;
let model: Model;
let client: Client;

beforeEach(async () => {
  // jsdom's own sends events of another realm than those that it takes.
  vi.stubGlobal("WebSocket", NodeWebSocket);
  server = await TestServer.start();
  model = new Model();
  const address = `127.0.0.1:${server.port}/user/ann/`;
  client = new Client(
    // Node's own fetch: jsdom has none. JupyterLab gives the one that knows its credentials.
    { baseUrl: `http://${address}`, wsUrl: `ws://${address}`, token: "to ken", fetch: (url, init) => fetch(url, init) },
    model,
  );
});

afterEach(async () => {
  client.dispose();
  await server.stop();
  vi.unstubAllGlobals();
});

function changed(): Promise<void> {
  return new Promise((resolve) => {
    const end = model.onChange(() => {
      end();
      resolve();
    });
  });
}

function connection(wanted: boolean): Promise<void> {
  return new Promise((resolve) => {
    const end = client.onConnection((connected) => {
      if (connected === wanted) {
        end();
        resolve();
      }
    });
  });
}

function answer(status: number, body: unknown): void {
  server.answer = { status, body: typeof body === "string" ? body : JSON.stringify(body) };
}

const last = (): unknown => server.asked.at(-1);

test.each([
  [{ verb: "start" }, "POST", "vms/my%20vm/start", "{}"],
  [{ verb: "stop", force: true }, "POST", "vms/my%20vm/stop", '{"force":true}'],
  [{ verb: "restart" }, "POST", "vms/my%20vm/restart", "{}"],
  [{ verb: "edit", cpus: 2 }, "PATCH", "vms/my%20vm", '{"cpus":2}'],
  [{ verb: "delete" }, "DELETE", "vms/my%20vm", ""],
  [{ verb: "delete", force: true }, "DELETE", "vms/my%20vm?force=1", ""],
  [{ verb: "create", name: "my vm", start: true }, "POST", "vms", '{"name":"my vm","start":true}'],
] as const)("%j is asked for by %s %s", async (action, method, path, body) => {
  const made = job();
  answer(202, made);
  expect(await client.act("my vm", action)).toEqual(made);
  expect(last()).toEqual({ method, url: `/user/ann/lima-kernels/api/${path}`, body });
  expect(model.jobs.get(made.id)).toEqual(made);
});

test("an answer that comes after its job's end does not bring it back", async () => {
  model.apply({ type: "job", job: job({ state: "done" }) });
  answer(202, job());
  await client.act("default", { verb: "start" });
  expect(model.jobs.get("j1")?.state).toBe("done");
});

test("a refusal is an error with its hint", async () => {
  answer(409, { message: "The VM is in use.", hint: "Stop its kernels.", context: ["1 kernel"] });
  const error: unknown = await client.act("default", { verb: "stop" }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ApiError);
  expect(error).toMatchObject({
    message: "The VM is in use.",
    hint: "Stop its kernels.",
    context: ["1 kernel"],
    status: 409,
  });
});

test("an answer of somebody else, such as a proxy, is an error in one line", async () => {
  answer(502, "<html>Bad gateway</html>");
  await expect(client.cancel("j1")).rejects.toThrow("The server answered 502 Bad Gateway.");
  answer(202, { no: "job" });
  vi.spyOn(console, "warn").mockImplementation(() => undefined);
  await expect(client.act("default", { verb: "start" })).rejects.toThrow("The server's answer is no job.");
});

test("a server that is not there is an error in one line", async () => {
  await server.stop();
  await expect(client.templates()).rejects.toThrow("The Jupyter server was not reached: ");
  server = await TestServer.start();
});

test("what can be asked is read", async () => {
  answer(200, { templates: [{ name: "debian-12", more: 1 }] });
  expect(await client.templates()).toEqual([{ name: "debian-12" }]);
  const environment = { name: "lima", displayName: "Linux (Lima)", instance: "lima-1", file: "/e.yaml" };
  answer(200, { environments: [environment] });
  expect(await client.environments()).toEqual([environment]);
  answer(200, { vms: [vm()], jobs: [] });
  expect(await client.vms()).toEqual([vm()]);
  answer(200, { lines: ["a", "b"] });
  expect(await client.log("default", 2)).toEqual(["a", "b"]);
  answer(200, { templates: "none" });
  await expect(client.templates()).rejects.toThrow("not as expected");
});

test("a kernel that is not ours has no VM; other failures are told", async () => {
  answer(200, { name: "default" });
  expect(await client.kernelVM("k/1")).toBe("default");
  expect(last()).toMatchObject({ url: "/user/ann/lima-kernels/api/kernels/k%2F1/vm" });
  answer(404, { message: "No such kernel." });
  expect(await client.kernelVM("k")).toBeNull();
  answer(500, { message: "Broken." });
  await expect(client.kernelVM("k")).rejects.toThrow("Broken.");
});

test("events reach the model; what is no JSON is dropped", async () => {
  const warn = vi.spyOn(console, "warn").mockImplementation(() => undefined);
  client.connect();
  await server.until(() => server.said.length === 2);
  expect(server.upgrades).toEqual(["/user/ann/lima-kernels/api/events?token=to%20ken"]);
  expect(server.said).toEqual([
    { type: "visible", names: null },
    { type: "follow", name: null },
  ]);
  const change = changed();
  server.tell("{");
  server.tell({ type: "snapshot", vms: [vm()], jobs: [] });
  await change;
  expect([...model.vms.keys()]).toEqual(["default"]);
  expect(warn).toHaveBeenCalledOnce();
});

test("a connection that is cut is made again, and hears what was wanted", async () => {
  client.connect();
  await server.until(() => server.said.length === 2);
  client.show(["default"]);
  client.follow("default");
  await server.until(() => server.said.length === 4);
  const lost = connection(false);
  server.cut();
  await lost;
  expect(client.connected).toBe(false);
  await server.until(() => server.said.length === 6);
  expect(server.said.slice(4)).toEqual([
    { type: "visible", names: ["default"] },
    { type: "follow", name: "default" },
  ]);
  expect(server.upgrades).toHaveLength(2);
});

test("a hidden page wants no usage", async () => {
  client.connect();
  await server.until(() => server.said.length === 2);
  const hidden = vi.spyOn(document, "hidden", "get").mockReturnValue(true);
  document.dispatchEvent(new Event("visibilitychange"));
  await server.until(() => server.said.length === 3);
  hidden.mockReturnValue(false);
  document.dispatchEvent(new Event("visibilitychange"));
  await server.until(() => server.said.length === 4);
  expect(server.said.slice(2)).toEqual([
    { type: "visible", names: [] },
    { type: "visible", names: null },
  ]);
});
