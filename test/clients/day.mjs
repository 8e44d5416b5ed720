// A day of two people with encryption, and of a third who knocks. Input: people zhou, chen, li; more.sliding.
import * as crypto from "node:crypto";
import { compareEmoji, device, event, reads, refused, room, withPassword } from "./lib/client.mjs";
import { assert, done, given, note, sleep, step, until } from "./lib/harness.mjs";

const { zhou, chen, li } = given.people;
const sliding = given.more.sliding;
const must = { must: true };
const text = (body, more = {}) => ({ msgtype: "m.text", body, ...more });
const send = async (c, r, content, type = "m.room.message", thread = null) => (await c.sendEvent(r, thread, type, content)).event_id;

/** Cross-signing, secret storage and key backup, as a client sets them up after the first log-in. */
async function bootstrap(c) {
    const api = c.getCrypto();
    await api.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(c) });
    const key = await api.createRecoveryKeyFromPassphrase();
    await api.bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewSecretStorage: true, setupNewKeyBackup: true });
    await until("cross-signing is ready", () => api.isCrossSigningReady());
    await until("the secret storage is ready", () => api.isSecretStorageReady());
    await until("the backup is in use", () => api.getActiveSessionBackupVersion());
    return key;
}

const z1 = await step("zhou logs in", () => device(zhou, { name: "zhou's laptop" }), must);
const c1 = await step("chen logs in", () => device(chen, { name: "chen's laptop" }), must);
await step("zhou sets up cross-signing, secret storage and backup", () => bootstrap(z1), must);
await step("chen sets up cross-signing, secret storage and backup", () => bootstrap(c1), must);

const secret = await step("an encrypted room, an invitation, a joining", async () => {
    const { room_id } = await z1.createRoom({
        name: "核心机密", invite: [chen.user_id], is_direct: true, preset: "trusted_private_chat",
        initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
    });
    await room(z1, room_id);
    const invited = await room(c1, room_id, "invite");
    assert.equal(invited.getDMInviter(), zhou.user_id);
    await c1.joinRoom(room_id);
    await room(c1, room_id);
    await until("both are members", () => [z1, c1].every((c) => c.getRoom(room_id).getJoinedMemberCount() === 2));
    return room_id;
}, must);

const hello = await step("chen reads what zhou encrypted", async () => {
    const id = await send(z1, secret, text("你好，陈晨"));
    const e = await reads(c1, secret, id, "你好，陈晨");
    assert.ok(e.isEncrypted());
    return id;
}, must);
await step("zhou reads what chen encrypted", async () => {
    await reads(z1, secret, await send(c1, secret, text("收到")), "收到");
});

await step("chen and zhou verify each other in the room", async () => {
    note(await compareEmoji(c1, z1, await c1.getCrypto().requestVerificationDM(zhou.user_id, secret)));
    for (const [c, other] of [[c1, zhou], [z1, chen]]) {
        await until("the other is verified", async () => (await c.getCrypto().getUserVerificationStatus(other.user_id)).isCrossSigningVerified());
    }
});

/** Waits until the backup has every key that zhou's laptop has; clients take their time for that. */
const allBackedUp = () => until("all keys are in the backup", async () => {
    const { count } = await z1.http.authedRequest("GET", "/room_keys/version", undefined, undefined, { prefix: "/_matrix/client/v3" });
    return count >= (await z1.getCrypto().exportRoomKeys()).length;
});

let z2;
await step("the backup fills", allBackedUp);
await step("zhou's phone logs in and is verified by emoji", async () => {
    z2 = await device(zhou, { name: "zhou's phone", keys: {} });
    const p = z2.getCrypto();
    assert.ok(!(await p.isCrossSigningReady()));
    note(await compareEmoji(z2, z1, await p.requestOwnUserVerification()));
    await until("zhou's laptop trusts the phone", async () =>
        (await z1.getCrypto().getDeviceVerificationStatus(zhou.user_id, z2.getDeviceId()))?.signedByOwner);
    await until("chen trusts the phone", async () =>
        (await c1.getCrypto().getDeviceVerificationStatus(zhou.user_id, z2.getDeviceId()))?.isVerified());
}, { ms: 60_000 });
await step("the phone gets the secrets and reads the past from the backup", async () => {
    await until("the secrets", async () => (await z2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.masterKey);
    await until("the backup", () => z2.getCrypto().getActiveSessionBackupVersion());
    await reads(z2, secret, hello, "你好，陈晨");
}, { ms: 60_000 });
await step("three devices read one message", async () => {
    const id = await send(c1, secret, text("大家都看见了吗"));
    for (const c of [z1, z2, c1]) await reads(c, secret, id, "大家都看见了吗");
});

await step("an edit", async () => {
    const id = await send(z1, secret, text("三点开会"));
    await reads(c1, secret, id, "三点开会");
    await send(z1, secret, text("* 四点开会", { "m.new_content": text("四点开会"), "m.relates_to": { rel_type: "m.replace", event_id: id } }));
    for (const c of [c1, z2]) await until("the new text", () => c.getRoom(secret).findEventById(id)?.getContent().body === "四点开会");
    const e = await c1.fetchRoomEvent(secret, id);
    assert.ok(e.unsigned?.["m.relations"]?.["m.replace"], "the event alone does not name its edit");
});

await step("reactions, and one taken back", async () => {
    const id = await send(z1, secret, text("谁来？"));
    await reads(c1, secret, id, "谁来？");
    const relate = (key) => ({ "m.relates_to": { rel_type: "m.annotation", event_id: id, key } });
    const ok = await send(c1, secret, relate("✅"), "m.reaction");
    const no = await send(c1, secret, relate("❌"), "m.reaction");
    const keys = () => z2.getRoom(secret).relations.getChildEventsForEvent(id, "m.annotation", "m.reaction")?.getSortedAnnotationsByKey()?.filter(([, s]) => s.size).map(([k]) => k).sort().join("");
    await until("both reactions", () => keys() === "✅❌");
    await c1.redactEvent(secret, no, undefined, { reason: "手滑" });
    await until("one reaction", () => keys() === "✅");
    await assert.rejects(send(c1, secret, relate("✅"), "m.reaction"), (e) => e.errcode === "M_DUPLICATE_ANNOTATION");
    assert.ok(ok);
});

await step("a thread", async () => {
    const root = await send(z1, secret, text("方案讨论"));
    await reads(c1, secret, root, "方案讨论");
    const reply = (c, body) => send(c, secret, text(body), "m.room.message", root);
    await reply(c1, "我先说");
    await reply(z1, "我补充");
    for (const c of [z1, z2, c1]) {
        const find = () => c.getRoom(secret).getThread(root);
        // The library counts a reply twice where it comes while it asks for the root; the server's count is looked at below.
        const t = await until("the thread", () => find()?.length >= 2 && find().replyToEvent?.getContent().body === "我补充" && find(),
            { why: () => `length ${find()?.length}, last ${find()?.replyToEvent?.getId()} ${find()?.replyToEvent?.decryptionFailureReason ?? ""}` });
        await until("its events", () => t.events.filter((e) => e.threadRootId === root && e.getContent().body).length >= 2);
    }
    const list = await c1.createThreadListMessagesRequest(secret, null, 10);
    assert.deepEqual(list.chunk.map((e) => e.event_id), [root]);
    assert.equal(list.chunk[0].unsigned["m.relations"]["m.thread"].count, 2);
    assert.equal(list.chunk[0].unsigned["m.relations"]["m.thread"].current_user_participated, true);
});

for (const [name, start, response, end] of [
    ["as clients send them", "org.matrix.msc3381.poll.start", "org.matrix.msc3381.poll.response", "org.matrix.msc3381.poll.end"],
    ["as the specification has them", "m.poll.start", "m.poll.response", "m.poll.end"],
]) {
    await step("a poll " + name, async () => {
        const old = start.startsWith("org");
        const id = await send(z1, secret, old ? {
            "org.matrix.msc1767.text": "午饭？",
            [start]: { kind: "org.matrix.msc3381.poll.disclosed", max_selections: 1, question: { "org.matrix.msc1767.text": "午饭？" }, answers: [{ id: "a", "org.matrix.msc1767.text": "面" }, { id: "b", "org.matrix.msc1767.text": "饭" }] },
        } : {
            "m.text": [{ body: "午饭？" }],
            "m.poll": { kind: "m.disclosed", max_selections: 1, question: { "m.text": [{ body: "午饭？" }] }, answers: [{ "m.id": "a", "m.text": [{ body: "面" }] }, { "m.id": "b", "m.text": [{ body: "饭" }] }] },
        }, start);
        await until("the poll arrives", () => [c1, z2].every((c) => c.getRoom(secret).findEventById(id)?.getType() === start));
        const ref = { "m.relates_to": { rel_type: "m.reference", event_id: id } };
        await send(c1, secret, old ? { ...ref, [response]: { answers: ["b"] } } : { ...ref, "m.selections": ["b"] }, response);
        await send(z2, secret, old ? { ...ref, [response]: { answers: ["a"] } } : { ...ref, "m.selections": ["a"] }, response);
        if (old && !sliding) { // the SDK makes a poll of what /sync brings alone
            for (const c of [z1, c1]) {
                const poll = await until("the poll", () => c.getRoom(secret).polls.get(id));
                const votes = async () => (await poll.getResponses()).getRelations().map((e) => e.getSender() + e.getContent()[response].answers[0]).sort();
                await until("two votes", async () => (await votes()).length === 2);
                assert.deepEqual(await votes(), [chen.user_id + "b", zhou.user_id + "a"]);
            }
        } else {
            const votes = async () => {
                const page = await z1.fetchRelations(secret, id, "m.reference", null, { dir: "b" });
                return page.chunk.length;
            };
            await until("two votes", async () => (await votes()) === 2);
        }
        await send(z1, secret, old ? { ...ref, [end]: {}, "org.matrix.msc1767.text": "完" } : { ...ref, "m.text": [{ body: "完" }] }, end);
        if (old && !sliding) await until("the poll has ended", () => c1.getRoom(secret).polls.get(id).isEnded);
    });
}

const plain = await step("a room without encryption, published, with an alias", async () => {
    const { room_id } = await z1.createRoom({ name: "公告", preset: "public_chat", visibility: "public", room_alias_name: "news" + Date.now(), topic: "公司公告" });
    const alias = (await room(z1, room_id)) && (await until("the alias", () => z1.getRoom(room_id).getCanonicalAlias()));
    assert.equal((await c1.getRoomIdForAlias(alias)).room_id, room_id);
    const found = await c1.publicRooms({ limit: 10, filter: { generic_search_term: "公告" } });
    assert.ok(found.chunk.some((r) => r.room_id === room_id && r.num_joined_members === 1), JSON.stringify(found));
    const summary = await c1.getRoomSummary(alias);
    assert.equal(summary.name, "公告");
    await c1.joinRoom(alias);
    await room(c1, room_id);
    return room_id;
}, must);

await step("public receipts and unread counts", async () => {
    const id = await send(z1, plain, text("请大家确认"));
    await reads(c1, plain, id, "请大家确认");
    await until("one unread", () => c1.getRoom(plain).getUnreadNotificationCount("total") === 1);
    const mention = await send(z1, plain, text("陈晨？", { "m.mentions": { user_ids: [chen.user_id] } }));
    const e = await reads(c1, plain, mention, "陈晨？");
    await until("a highlight", () => c1.getRoom(plain).getUnreadNotificationCount("highlight") === 1);
    await c1.sendReadReceipt(e);
    for (const c of [z1, z2 ?? z1]) await until("zhou sees who has read", () => c.getRoom(plain).hasUserReadEvent(chen.user_id, mention));
    await until("nothing unread", () => c1.getRoom(plain).getUnreadNotificationCount("total") === 0);
});
await step("a private receipt stays private, and counts", async () => {
    const id = await send(z1, plain, text("还有一件事"));
    const e = await reads(c1, plain, id, "还有一件事");
    await until("one unread", () => c1.getRoom(plain).getUnreadNotificationCount("total") === 1);
    await c1.sendReadReceipt(e, "m.read.private");
    await until("nothing unread", () => c1.getRoom(plain).getUnreadNotificationCount("total") === 0);
    const marker = await send(c1, plain, text("先放一放"));
    await reads(z1, plain, marker, "先放一放");
    assert.ok(!z1.getRoom(plain).getReceiptsForEvent(z1.getRoom(plain).findEventById(id)).some((r) => r.type !== "m.read"));
    await c1.setRoomReadMarkers(plain, id);
    await until("the marker", () => c1.getRoom(plain).getAccountData("m.fully_read")?.getContent().event_id === id);
});
// Sliding sync has no unread counts of threads.
if (!sliding) await step("receipts of a thread", async () => {
    const start = await send(z1, plain, text("讨论"));
    await reads(c1, plain, start, "讨论");
    const one = await send(z1, plain, text("第一"), "m.room.message", start);
    const e = await event(c1, plain, one);
    const room = c1.getRoom(plain);
    await until("unread in the thread", () => room.getThreadUnreadNotificationCount(start, "total") === 1);
    await c1.sendReadReceipt(room.findEventById(start)); // of the main timeline: that of the thread stays
    await until("the main timeline is read", () => room.getRoomUnreadNotificationCount("total") === 0);
    assert.equal(room.getThreadUnreadNotificationCount(start, "total"), 1);
    await c1.sendReadReceipt(e);
    await until("the thread is read", () => room.getThreadUnreadNotificationCount(start, "total") === 0);
    await until("zhou's phone sees it", () => z2.getRoom(plain).getThread(start)?.hasUserReadEvent(chen.user_id, one));
});

await step("typing", async () => {
    await c1.sendTyping(secret, true, 10_000);
    await until("zhou sees it", () => z1.getRoom(secret).getMember(chen.user_id)?.typing);
    await c1.sendTyping(secret, false, 0);
    await until("zhou sees the end", () => !z1.getRoom(secret).getMember(chen.user_id).typing);
});

await step("an encrypted picture", async () => {
    const picture = crypto.randomBytes(300_000);
    const key = crypto.randomBytes(32);
    const iv = Buffer.concat([crypto.randomBytes(8), Buffer.alloc(8)]);
    const cipher = crypto.createCipheriv("aes-256-ctr", key, iv);
    const sealed = Buffer.concat([cipher.update(picture), cipher.final()]);
    const { content_uri } = await z1.uploadContent(new Blob([sealed]), { type: "application/octet-stream", includeFilename: false });
    const id = await send(z1, secret, {
        msgtype: "m.image", body: "图.png", info: { mimetype: "image/png", size: picture.length },
        file: {
            url: content_uri, v: "v2", iv: iv.toString("base64").replace(/=+$/, ""),
            key: { kty: "oct", alg: "A256CTR", ext: true, key_ops: ["encrypt", "decrypt"], k: key.toString("base64url") },
            hashes: { sha256: crypto.createHash("sha256").update(sealed).digest("base64").replace(/=+$/, "") },
        },
    });
    const { file } = (await event(c1, secret, id)).getContent();
    const url = c1.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
    assert.equal((await fetch(url)).status, 401, "media without a token");
    const r = await fetch(url, { headers: { Authorization: "Bearer " + c1.getAccessToken() } });
    assert.equal(r.status, 200);
    const got = Buffer.from(await r.arrayBuffer());
    assert.equal(crypto.createHash("sha256").update(got).digest("base64").replace(/=+$/, ""), file.hashes.sha256);
    const open = crypto.createDecipheriv("aes-256-ctr", Buffer.from(file.key.k, "base64url"), Buffer.from(file.iv, "base64"));
    assert.ok(Buffer.concat([open.update(got), open.final()]).equals(picture));
});
await step("a picture with a thumbnail, and the limit of uploads", async () => {
    const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");
    const { content_uri } = await z1.uploadContent(new Blob([png]), { type: "image/png", name: "点.png" });
    const r = await fetch(c1.mxcUrlToHttp(content_uri, 32, 32, "scale", false, true, true), { headers: { Authorization: "Bearer " + c1.getAccessToken() } });
    assert.equal(r.status, 200);
    assert.match(r.headers.get("content-type"), /^image\//);
    assert.ok((await c1.getMediaConfig(true))["m.upload.size"] > 1_000_000);
});

await step("search", async () => {
    const id = await send(z1, plain, text("预算报告明天提交"));
    await reads(c1, plain, id, "预算报告明天提交");
    await until("it is found", async () => {
        const r = await c1.searchRoomEvents({ term: "预算报告" });
        return r.results.some((x) => x.context.getEvent().getId() === id);
    });
});

await step("the past of a room page by page, around an event, and by time", async () => {
    const ids = [];
    for (let i = 0; i < 45; i++) ids.push(await send(z1, plain, text("第" + i)));
    const fresh = await device(chen, { name: "chen's tablet", keys: {} });
    const r = await room(fresh, plain);
    for (let i = 0; i < 10 && !r.findEventById(ids[0]); i++) await fresh.scrollback(r, 20);
    const seen = r.getLiveTimeline().getEvents().map((e) => e.getId()).filter((id) => ids.includes(id));
    assert.deepEqual(seen, ids);
    const around = await fresh.getEventTimeline(r.getUnfilteredTimelineSet(), ids[20]);
    assert.ok(around.getEvents().some((e) => e.getId() === ids[20]));
    const { event_id } = await fresh.timestampToEvent(plain, r.findEventById(ids[5]).getTs() - 1, "f");
    assert.ok(ids.slice(0, 6).includes(event_id));
    await fresh.logout(true);
}, { ms: 60_000 });

await step("people: name, picture, presence, ignoring, looking up", async () => {
    await c1.setDisplayName("陈晨（研发）");
    await until("the new name", () => z1.getRoom(secret).getMember(chen.user_id).rawDisplayName === "陈晨（研发）");
    assert.equal((await z1.getProfileInfo(chen.user_id)).displayname, "陈晨（研发）");
    const found = await z1.searchUserDirectory({ term: "陈晨" });
    assert.ok(found.results.some((u) => u.user_id === chen.user_id));
    await z1.setIgnoredUsers([li.user_id]);
    await until("li is ignored", () => z1.isUserIgnored(li.user_id));
    await z1.setIgnoredUsers([]);
    await until("li is not ignored", () => !z1.isUserIgnored(li.user_id));
    await z1.setRoomTag(secret, "m.favourite", { order: 0.5 });
    await until("the tag reaches the other device", () => (z2 ?? z1).getRoom(secret).tags["m.favourite"]?.order === 0.5);
    await z1.setAccountData("m.direct", { [chen.user_id]: [secret] });
    await until("the list of direct chats reaches the other device", () => (z2 ?? z1).getAccountData("m.direct")?.getContent()[chen.user_id]?.[0] === secret);
});

await step("rules of notification", async () => {
    await c1.setRoomMutePushRule("global", plain, true);
    await until("the rule arrives", () => c1.getRoomPushRule("global", plain));
    await reads(c1, plain, await send(z1, plain, text("没人理我")), "没人理我");
    await sleep(200);
    assert.equal(c1.getRoom(plain).getUnreadNotificationCount("total"), 0);
    await c1.setRoomMutePushRule("global", plain, false);
    await until("the rule goes", () => !c1.getRoomPushRule("global", plain));
});

await step("the phone logs out: others see it, and encrypt anew without it", async () => {
    const old = await event(c1, secret, await send(c1, secret, text("手机在吗")));
    const phone = z2.getDeviceId();
    assert.ok((await z1.getDevices()).devices.some((d) => d.device_id === phone && d.display_name === "zhou's phone"));
    z2.stopClient();
    await z2.logout();
    await until("chen's list of devices", async () => {
        const devices = (await c1.getCrypto().getUserDeviceInfo([zhou.user_id])).get(zhou.user_id);
        return devices && !devices.has(phone);
    });
    const now = await event(c1, secret, await send(c1, secret, text("手机没了")));
    assert.notEqual(now.getWireContent().session_id, old.getWireContent().session_id);
    await reads(z1, secret, now.getId(), "手机没了");
});

await step("a new device has all the past from the backup with the recovery key", async () => {
    await allBackedUp();
    const z3 = await device(zhou, { name: "zhou's new phone" });
    const p = z3.getCrypto();
    assert.ok(await p.userHasCrossSigningKeys(zhou.user_id, true));
    await p.bootstrapCrossSigning({});
    assert.ok(await p.isCrossSigningReady());
    await p.loadSessionBackupPrivateKeyFromSecretStorage();
    await p.checkKeyBackupAndEnable();
    const { total, imported } = await p.restoreKeyBackup();
    assert.ok(total > 0 && imported === total, `${imported} of ${total}`);
    const r = await room(z3, secret);
    for (let i = 0; i < 10 && !r.findEventById(hello); i++) await z3.scrollback(r, 50);
    await reads(z3, secret, hello, "你好，陈晨");
    await until("nothing is unreadable", () => !r.getLiveTimeline().getEvents().some((e) => e.isDecryptionFailure()));
    await until("chen trusts it", async () => (await c1.getCrypto().getDeviceVerificationStatus(zhou.user_id, z3.getDeviceId()))?.isVerified());
    await z1.setDeviceDetails(z3.getDeviceId(), { display_name: "换机" });
    assert.equal((await z1.getDevice(z3.getDeviceId())).display_name, "换机");
    await withPassword(z1)((auth) => z1.deleteMultipleDevices([z3.getDeviceId()], auth ?? undefined));
    await until("it is logged out", async () => !(await z1.getDevices()).devices.some((d) => d.device_id === z3.getDeviceId()));
    z3.stopClient();
}, { ms: 60_000 });

await step("a room is upgraded", async () => {
    const { replacement_room } = await z1.upgradeRoom(plain, "12");
    await until("the tombstone", () => c1.getRoom(plain).currentState.getStateEvents("m.room.tombstone", "")?.getContent().replacement_room === replacement_room);
    await c1.joinRoom(replacement_room);
    const r = await room(c1, replacement_room);
    await until("its predecessor", () => r.findPredecessor()?.roomId === plain);
    await until("its name", () => r.name === "公告");
    assert.equal(r.getVersion(), "12");
    await reads(c1, replacement_room, await send(z1, replacement_room, text("搬家了")), "搬家了");
    await assert.rejects(send(c1, plain, text("还在旧房间")), (e) => e.errcode === "M_FORBIDDEN");
});

await step("li knocks and is let in", async () => {
    const { room_id } = await z1.createRoom({ name: "会议室", initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }] });
    const l1 = await device(li, { name: "li's laptop" });
    await l1.knockRoom(room_id, { reason: "开会" });
    await room(l1, room_id, "knock");
    await until("zhou hears it", () => z1.getRoom(room_id)?.getMember(li.user_id)?.membership === "knock");
    await z1.invite(room_id, li.user_id);
    await room(l1, room_id, "invite");
    await l1.joinRoom(room_id);
    await room(l1, room_id);
    await reads(l1, room_id, await send(z1, room_id, text("请坐")), "请坐");
    await z1.kick(room_id, li.user_id, "散会");
    await until("li is out", () => ["leave", undefined].includes(l1.getRoom(room_id)?.getMyMembership()));
    await l1.knockRoom(room_id, { reason: "再来" });
    await until("zhou hears it again", () => z1.getRoom(room_id)?.getMember(li.user_id)?.membership === "knock");
    await z1.kick(room_id, li.user_id, "不行");
    await until("zhou has refused", () => z1.getRoom(room_id)?.getMember(li.user_id)?.membership === "leave");
});

await step("a space", async () => {
    const { room_id: space } = await z1.createRoom({ name: "研发中心", creation_content: { type: "m.space" }, preset: "public_chat" });
    await z1.sendStateEvent(space, "m.space.child", { via: [given.server], suggested: true }, secret);
    const { room_id: inside } = await z1.createRoom({
        name: "前端组",
        initial_state: [
            { type: "m.space.parent", state_key: space, content: { via: [given.server], canonical: true } },
            { type: "m.room.join_rules", state_key: "", content: { join_rule: "restricted", allow: [{ type: "m.room_membership", room_id: space }] } },
        ],
    });
    await z1.sendStateEvent(space, "m.space.child", { via: [given.server] }, inside);
    await assert.rejects(c1.joinRoom(inside), (e) => e.errcode === "M_FORBIDDEN");
    await c1.joinRoom(space);
    const r = await room(c1, space);
    await until("it is a space", () => r.isSpaceRoom());
    const { rooms } = await c1.getRoomHierarchy(space, 10);
    assert.deepEqual(rooms.map((x) => x.room_id).sort(), [space, secret, inside].sort());
    await c1.joinRoom(inside);
    await room(c1, inside);
});

await step("an invitation is declined, a room is left and forgotten", async () => {
    const { room_id } = await z1.createRoom({ name: "不去", invite: [chen.user_id] });
    await room(c1, room_id, "invite");
    await c1.leave(room_id);
    await until("it is gone", () => ["leave", undefined].includes(c1.getRoom(room_id)?.getMyMembership()));
    await c1.forget(room_id);
});

await step("a message is removed", async () => {
    const id = await send(z1, secret, text("说错了"));
    await reads(c1, secret, id, "说错了");
    await z1.redactEvent(secret, id);
    await until("it is gone", () => c1.getRoom(secret).findEventById(id)?.isRedacted());
});

await step("encryption is reset", async () => {
    await c1.getCrypto().resetEncryption(withPassword(c1));
    await until("zhou sees another chen", async () => {
        const s = await z1.getCrypto().getUserVerificationStatus(chen.user_id);
        return !s.isCrossSigningVerified() && s.wasCrossSigningVerified();
    });
});

await step("everything was understood", () => {
    const expected = [
        /401 M_UNAUTHORIZED|401$/, // the question for the password
        /^(GET|DELETE) (v3|unstable).*(room_keys|dehydrated_device).* 404 M_NOT_FOUND/,
        /^GET v3\/user\/\*\/account_data\/[^ ]* 404 M_NOT_FOUND/, // before it was set
        /M_DUPLICATE_ANNOTATION|403 M_FORBIDDEN/, // what the day tries
        / 401 M_UNKNOWN_TOKEN/, // under way while the device was logged out
        /^DELETE unstable\/[^ ]*\/dehydrated_device 404 /,
    ];
    const odd = [...new Set(refused)].filter((r) => !expected.some((e) => e.test(r)));
    assert.deepEqual(odd, []);
});
await done();
