// A person signs in by the OAuth 2.0 API: the pages of the server in Chromium, the client's side as matrix-js-sdk does
// it. Once in Chinese on a phone, once in English on a desk.
import { createServer } from "node:http";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { browser, picture } from "./lib/browser.mjs";
import { assert, atEnd, done, given, step } from "./lib/harness.mjs";

// The SDK keeps the state of a sign-in where a web page keeps it.
const kept = new Map();
const storage = {
    get length() { return kept.size; },
    key: (i) => [...kept.keys()][i] ?? null,
    getItem: (k) => kept.get(k) ?? null,
    setItem: (k, v) => kept.set(k, v),
    removeItem: (k) => kept.delete(k),
};
globalThis.localStorage = globalThis.sessionStorage = storage;
globalThis.window = { location: { origin: "http://127.0.0.1", href: "http://127.0.0.1/" }, sessionStorage: storage, localStorage: storage };
const sdk = await import("matrix-js-sdk");
const oidc = await import("matrix-js-sdk/lib/oidc/index.js");
const { registerOidcClient } = await import("matrix-js-sdk/lib/oidc/register.js");
logger.setLevel("silent", false);

const app = createServer((_, r) => r.setHeader("Content-Type", "text/html").end("<!doctype html><title>client</title><p>Welcome back"));
await new Promise((r) => app.listen(0, "127.0.0.1", r));
atEnd(() => app.close());
const redirectUri = `http://127.0.0.1:${app.address().port}/callback`;

const words = {
    zh: { signIn: "登录", wrong: "用户名或密码不正确", allow: "允许", devices: "设备", signOut: "退出此设备", gone: "该设备已退出登录", other: "English" },
    en: { signIn: "Sign in", wrong: "Wrong user name or password", allow: "Allow", devices: "Devices", signOut: "Sign out this device", gone: "The device has been signed out", other: "中文" },
};

async function day(lang, person, options) {
    const w = words[lang];
    const say = (text) => (lang === "zh" ? "[中文] " : "[English] ") + text;
    const client = sdk.createClient({ baseUrl: given.url });
    const complaints = [];
    const page = await step(say("a browser"), async () => {
        const p = await (await browser({ locale: lang === "zh" ? "zh-CN" : "en-GB", ...options })).newPage();
        p.on("console", (m) => m.type() === "error" && !/status of 4\d\d/.test(m.text()) && complaints.push(m.text()));
        return p;
    }, { must: true });
    const metadata = await step(say("the client finds the authorization server"), () => client.getAuthMetadata(), { must: true });
    const clientId = await step(say("the client registers"), () =>
        registerOidcClient(metadata, {
            clientName: "Bell", clientUri: "https://bell.example/", redirectUris: ["http://127.0.0.1/callback"], applicationType: "native",
        }), { must: true });
    const nonce = "nonce of " + lang;
    const address = await oidc.generateOidcAuthorizationUrl({ metadata, redirectUri, clientId, homeserverUrl: given.url, nonce });

    await step(say("a wrong password is told in its place"), async () => {
        await page.goto(address);
        assert.equal(await page.getAttribute("html", "lang"), lang);
        await picture(page, `oauth-${lang}-sign-in`);
        await page.fill("#user", person.name);
        await page.fill("#password", "wrong");
        await page.click(`button:has-text("${w.signIn}")`);
        await page.waitForSelector(`[role=alert]:has-text("${w.wrong}")`);
        assert.equal(await page.inputValue("#user"), person.name);
        await picture(page, `oauth-${lang}-wrong`);
    });
    await step(say("the page fits the screen"), async () => {
        const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
        assert.ok(content <= screen, `${content} pixels wide on a screen of ${screen}`);
        const colour = await page.evaluate(() => getComputedStyle(document.querySelector("button[type=submit]")).backgroundColor);
        assert.notEqual(colour, "rgba(0, 0, 0, 0)", "the page has no style");
    });
    await step(say("the language can be changed and back"), async () => {
        await page.click(`a.lang:has-text("${w.other}")`);
        await page.waitForSelector(`html[lang=${lang === "zh" ? "en" : "zh"}]`);
        await page.click("a.lang");
        await page.waitForSelector(`html[lang=${lang}]`);
    });
    const back = await step(say("signs in and agrees"), async () => {
        await page.fill("#user", person.name);
        await page.fill("#password", person.password);
        await page.click(`button:has-text("${w.signIn}")`);
        await page.waitForSelector(`button:has-text("${w.allow}")`);
        const text = await page.innerText("main");
        for (const part of ["Bell", "bell.example", person.user_id]) assert.ok(text.includes(part), `${part} is not on the page: ${text}`);
        await picture(page, `oauth-${lang}-consent`);
        await page.click(`button:has-text("${w.allow}")`);
        await page.waitForURL(/\/callback\?/);
        return new URL(page.url());
    }, { must: true });
    const tokens = await step(say("the client exchanges the code"), async () => {
        const r = await oidc.completeAuthorizationCodeGrant(back.searchParams.get("code"), back.searchParams.get("state"));
        assert.equal(r.homeserverUrl, given.url);
        assert.equal(r.idTokenClaims.sub, person.user_id);
        return { ...r.tokenResponse, claims: r.idTokenClaims };
    }, { must: true });
    const mine = (token) => sdk.createClient({ baseUrl: given.url, accessToken: token });
    const who = await step(say("the token works"), async () => {
        const w = await mine(tokens.access_token).whoami();
        assert.equal(w.user_id, person.user_id);
        return w;
    }, { must: true });
    const fresh = await step(say("the client refreshes its token"), async () => {
        const refresher = new oidc.OidcTokenRefresher(metadata.issuer, clientId, redirectUri, who.device_id, tokens.claims);
        await refresher.oidcClientReady;
        const r = await refresher.doRefreshAccessToken(tokens.refresh_token);
        assert.equal((await mine(r.accessToken).whoami()).device_id, who.device_id);
        await assert.rejects(mine(tokens.access_token).whoami(), (e) => e.errcode === "M_UNKNOWN_TOKEN");
        return r.accessToken;
    }, { must: true });
    await step(say("the account page lists the device"), async () => {
        await page.goto(metadata.account_management_uri + "?action=org.matrix.devices_list");
        await page.waitForSelector(`h1:has-text("${w.devices}")`);
        assert.ok((await page.innerText("main")).includes(who.device_id));
        await picture(page, `oauth-${lang}-devices`);
    });
    await step(say("and signs it out"), async () => {
        await page.goto(metadata.account_management_uri + "?action=org.matrix.device_delete&device_id=" + encodeURIComponent(who.device_id));
        await picture(page, `oauth-${lang}-device`);
        await page.click(`button:has-text("${w.signOut}")`);
        await page.waitForSelector(`[role=status]:has-text("${w.gone}")`);
        assert.ok(!(await page.innerText("main")).includes(who.device_id));
        await assert.rejects(mine(fresh).whoami(), (e) => e.errcode === "M_UNKNOWN_TOKEN");
    });
    await step(say("the profile and the other pages open"), async () => {
        for (const path of ["", "/password", "/reset", "/deactivate"]) {
            const r = await page.goto(metadata.account_management_uri + path);
            assert.equal(r.status(), 200, path);
            assert.equal(await page.getAttribute("html", "lang"), lang);
            await picture(page, `oauth-${lang}-account${path.replace("/", "-")}`);
        }
    });
    await step(say("no page breaks its own policy"), () => assert.deepEqual(complaints, []));
}

await day("zh", given.people.meiling, { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });
await day("en", given.people.olivia, {});
await done();
