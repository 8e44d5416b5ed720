// A page of another origin talks to Carillon from a browser: what every web client starts with.
import { createServer } from "node:http";
import { browser } from "./lib/browser.mjs";
import { assert, atEnd, done, given, step } from "./lib/harness.mjs";

const page = await step("a page of another origin", async () => {
    const web = createServer((_, r) => r.setHeader("Content-Type", "text/html").end("<!doctype html><title>client</title>"));
    await new Promise((r) => web.listen(0, "127.0.0.1", r));
    atEnd(() => web.close());
    const p = await (await browser()).newPage();
    await p.goto(`http://127.0.0.1:${web.address().port}/`);
    return p;
}, { must: true });

const api = (method, path, body, token) =>
    page.evaluate(
        async ([url, method, body, token]) => {
            const headers = {};
            if (body !== undefined) headers["Content-Type"] = "application/json";
            if (token) headers.Authorization = "Bearer " + token;
            const r = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
            return { status: r.status, body: await r.json() };
        },
        [given.url + path, method, body, token],
    );

const zhou = given.people.zhou;
await step("asks what the server speaks", async () => {
    const r = await api("GET", "/_matrix/client/versions");
    assert.equal(r.status, 200);
    assert.ok(r.body.versions.includes("v1.11"));
});
const token = await step("logs in", async () => {
    const r = await api("POST", "/_matrix/client/v3/login", {
        type: "m.login.password", identifier: { type: "m.id.user", user: zhou.name }, password: zhou.password,
    });
    assert.equal(r.status, 200, JSON.stringify(r.body));
    return r.body.access_token;
});
await step("asks with its token, which takes a preflight request", async () => {
    const r = await api("GET", "/_matrix/client/v3/account/whoami", undefined, token);
    assert.deepEqual([r.status, r.body.user_id], [200, zhou.user_id]);
});
await step("reads the error of a refused request", async () => {
    const r = await api("GET", "/_matrix/client/v3/account/whoami", undefined, "nonsense");
    assert.deepEqual([r.status, r.body.errcode], [401, "M_UNKNOWN_TOKEN"]);
});
await done();
