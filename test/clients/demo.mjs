// The demo as two people see it in their clients: the company's spaces and rooms, who has read, a DING.
import { device, reads, refused } from "./lib/client.mjs";
import { assert, done, given, step, until } from "./lib/harness.mjs";

const { zhoumin, chenchen } = given.people;
const send = async (c, r, content, type = "m.room.message") => (await c.sendEvent(r, type, content)).event_id;
const named = (c, name, space = false) => c.getRooms().find((r) => r.name === name && r.isSpaceRoom() === space && r.getMyMembership() === "join");

let z, c;
await step("two people log in", async () => {
    z = await device(zhoumin);
    c = await device(chenchen);
}, { must: true });
await step("both find their department and the company, by name and in their spaces", async () => {
    for (const x of [z, c]) {
        for (const r of x.getRooms()) assert.match(r.name, /[\u4e00-\u9fff]/, `${x.person.name} sees a room called ${r.name}`);
        for (const name of ["技术研发部", "明远科技集团全员群"]) assert.ok(named(x, name), `${x.person.name} lacks ${name}`);
        const company = named(x, "明远科技集团", true);
        const children = company.currentState.getStateEvents("m.space.child").map((e) => e.getStateKey());
        assert.ok(children.includes(named(x, "明远科技集团全员群").roomId), "the company's space does not hold the room of all");
        const department = named(x, "技术研发部");
        assert.equal(department.getJoinedMemberCount(), 10);
        await department.loadMembersIfNeeded();
        assert.equal(department.getJoinedMembers().length, 10);
        assert.ok(department.getJoinedMembers().every((m) => /[\u4e00-\u9fff]|Carillon/.test(m.name)), "members without names");
    }
});

const department = named(z, "技术研发部").roomId;
/** The room with Carillon, and its newest message that says something. */
const carillon = (x, text) => until(`Carillon says ${text} to ${x.person.name}`, () => {
    const r = x.getRooms().find((r) => r.name === "Carillon" && r.getMyMembership() === "join");
    const e = r?.getLiveTimeline().getEvents().findLast((e) => e.getSender() === `@carillon:${given.server}` && e.getType() === "m.room.message" && e.getContent().body?.includes(text));
    return e && { room: r.roomId, event: e };
}, { why: () => JSON.stringify(x.getRooms().filter((r) => r.name === "Carillon").map((r) => r.getLiveTimeline().getEvents().map((e) => [e.getId(), e.getTs(), e.getRelation()?.event_id, e.replacingEventId(), e.getContent().body]))) });

await step("a message is read; 👀 tells who has read it", async () => {
    const id = await send(z, department, { msgtype: "m.text", body: "大家好" });
    await c.sendReadReceipt(await reads(c, department, id, "大家好"));
    await until("zhou's client shows that chen has read it", () => z.getRoom(department).hasUserReadEvent(chenchen.user_id, id));
    await send(z, department, { "m.relates_to": { rel_type: "m.annotation", event_id: id, key: "👀" } }, "m.reaction");
    const { event } = await carillon(z, "已读 (1)");
    assert.match(event.getContent().body, /已读 \(1\)：陈晨/);
    assert.match(event.getContent().body, /未读 \(7\)/);
});
await step("a DING is confirmed with a reaction, and the card follows", async () => {
    await send(z, department, { msgtype: "m.text", body: `!ding ${chenchen.user_id} 请给我回电话` });
    const { room, event } = await carillon(c, "请给我回电话");
    await carillon(z, "请给我回电话");
    await send(c, room, { "m.relates_to": { rel_type: "m.annotation", event_id: event.getId(), key: "✅" } }, "m.reaction");
    await carillon(z, "全部确认");
});
await step("everything was understood", () => assert.deepEqual([...new Set(refused)].filter((r) => !/ 404 M_NOT_FOUND/.test(r)), []));
await done();
