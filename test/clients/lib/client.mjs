// A person's client: matrix-js-sdk with the Rust crypto, everything in memory.
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { SlidingSync } from "matrix-js-sdk/lib/sliding-sync.js";
import { VerificationMethod } from "matrix-js-sdk/lib/types.js";
import { VerificationPhase, VerificationRequestEvent, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { CryptoEvent } from "matrix-js-sdk/lib/crypto-api/CryptoEvent.js";
import { assert, atEnd, given, sleep, until, wait } from "./harness.mjs";

export { sdk, CryptoEvent, VerificationPhase };

const verbose = !!process.env.CARILLON_TEST_LOG;
logger.setLevel(verbose ? "debug" : "silent", false);
if (!verbose) for (const f of ["log", "info", "debug", "warn", "error", "trace"]) console[f] = () => {}; // the crypto's own log

/** What the server refused: "GET /path 404 M_NOT_FOUND". Looked at when the day is over. */
export const refused = [];

const path = (url) =>
    decodeURIComponent(new URL(url).pathname)
        .replace("/_matrix/client/", "")
        .replace(/[!$#@+][^/]*/g, "*");

/**
 * fetch for one client. It notes what is refused, and keeps an answer of /sync back while the client is sending: when
 * its own message in a thread comes that way before /send has answered, this version of the SDK takes the sending for
 * failed and tries again after ten seconds.
 */
function fetcher() {
    const sending = new Set();
    return async (url, options) => {
        const asked = fetch(url, options);
        const kind = path(url);
        if (/^v3\/rooms\/\*\/(send|redact)\//.test(kind)) {
            const over = asked.then(() => sleep(5), () => {}).then(() => sending.delete(over));
            sending.add(over);
        }
        const r = await asked;
        if (kind.endsWith("/sync")) await Promise.all(sending);
        if (r.status >= 400) {
            const body = await r.clone().json().catch(() => ({}));
            refused.push(`${options?.method ?? "GET"} ${kind} ${r.status} ${body.errcode ?? ""} ${body.error ?? ""}`.trim());
        }
        return r;
    };
}

/** What a client of the size of Element asks of sliding sync. */
function slidingSync(client) {
    const state = [["*", "*"]];
    const lists = new Map([["all", { ranges: [[0, 99]], timeline_limit: 20, required_state: state, include_old_rooms: { timeline_limit: 0, required_state: state } }]]);
    return new SlidingSync(given.url, lists, { timeline_limit: 20, required_state: state }, client, 20_000);
}

/** Logs a person in on a new device and starts to sync. keys holds the person's key of the secret storage. */
export async function device(person, { sliding = !!given.more?.sliding, name = "script", keys = person } = {}) {
    const fetchFn = fetcher();
    const fresh = sdk.createClient({ baseUrl: given.url, fetchFn });
    const login = await fresh.loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: person.name },
        password: person.password,
        initial_device_display_name: name,
    });
    assert.equal(login.user_id, person.user_id);
    const client = sdk.createClient({
        baseUrl: given.url,
        fetchFn,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
        timelineSupport: true,
        verificationMethods: [VerificationMethod.Sas],
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys: wanted }) => {
                const id = Object.keys(wanted).find((id) => keys.secret?.[id]);
                return id ? [id, keys.secret[id]] : null;
            },
            cacheSecretStorageKey: (id, _, key) => (keys.secret = { ...keys.secret, [id]: key }),
        },
    });
    client.person = person;
    await client.initRustCrypto({ useIndexedDB: false });
    const options = { initialSyncLimit: 20, threadSupport: true, lazyLoadMembers: true, pollTimeout: 20_000 };
    if (sliding) options.slidingSync = slidingSync(client);
    await client.startClient(options);
    atEnd(() => client.stopClient());
    await until(`${person.name} is in sync`, () => ["PREPARED", "SYNCING"].includes(client.getSyncState()));
    return client;
}

/** Proves who the client's user is, where the server asks. */
export const withPassword = (client) => async (request) => {
    try {
        return await request(null);
    } catch (e) {
        if (e.httpStatus !== 401 || !e.data?.flows) throw e;
        assert.ok(e.data.flows.some((f) => f.stages.includes("m.login.password")), "no flow with a password: " + JSON.stringify(e.data));
        return request({
            type: "m.login.password",
            session: e.data.session,
            identifier: { type: "m.id.user", user: client.person.user_id },
            password: client.person.password,
        });
    }
};

/** The room as the client has it, once it has it as a member. */
export const room = (client, id, membership = "join") =>
    until(`${client.person.name} has ${id} as ${membership}`, () => {
        const r = client.getRoom(id);
        return r?.getMyMembership() === membership && r;
    });

/** The event in the client's timeline or threads, decrypted. */
export const event = (client, roomId, id) => {
    const find = () => client.getRoom(roomId)?.findEventById(id);
    return until(`${client.person.name} gets ${id}`, () => {
        const e = find();
        if (e && !e.isBeingDecrypted()) client.decryptEventIfNeeded(e).catch(() => {}); // as who shows it does
        return e && !e.isSending() && !e.isBeingDecrypted() && !e.isDecryptionFailure() && e.getType() !== "m.room.encrypted" && e;
    }, { why: () => find() ? `it is there: ${find().status ?? ""} ${find().decryptionFailureReason ?? ""} ${JSON.stringify(find().getWireContent())}` : "it is not there" });
};

/** Waits until a client reads a text. */
export async function reads(client, roomId, id, text) {
    const e = await event(client, roomId, id);
    assert.equal(e.getContent().body, text);
    return e;
}

/** Two clients compare emoji. from has started the request. */
export async function compareEmoji(from, to, request) {
    const theirs = await until("the request arrives", () => {
        const all = request.roomId
            ? [to.getCrypto().findVerificationRequestDMInProgress(request.roomId, from.getUserId())]
            : to.getCrypto().getVerificationRequestsToDeviceInProgress(from.getUserId());
        return all.find((r) => r && !r.initiatedByMe);
    });
    await wait("the request is accepted", theirs.accept());
    const phase = (r, p) => until(`phase ${VerificationPhase[p]} of ${r.initiatedByMe ? "the one who asked" : "the other"}`, () => {
        if (r.phase === VerificationPhase.Cancelled) throw new Error(`cancelled: ${r.cancellationCode}`);
        return r.phase >= p && r;
    });
    await phase(request, VerificationPhase.Ready);
    const mine = await wait("the verification starts", request.startVerification("m.sas.v1"));
    const seen = [];
    const compare = (v) => {
        const got = (sas) => { seen.push([v, sas]); };
        v.on(VerifierEvent.ShowSas, got);
        return v.verify();
    };
    const a = compare(mine);
    await phase(theirs, VerificationPhase.Started);
    const b = compare(await until("the other's verifier", () => theirs.verifier));
    a.catch(() => {}), b.catch(() => {});
    await until("both show emoji", () => seen.length === 2);
    const [x, y] = seen.map(([, s]) => s.sas.emoji.map(([e]) => e).join(" "));
    assert.equal(x, y);
    for (const [, sas] of seen) await wait("one confirms", sas.confirm()); // at the same moment the SDK may miss the other's end
    await phase(request, VerificationPhase.Done);
    await phase(theirs, VerificationPhase.Done);
    await wait("the end for who asked", a);
    await wait("the end for the other", b);
    return x;
}
