// What every script uses: its input, steps with a bound, waiting, and the report to the Go test that started it.
import { strict as assert } from "node:assert";

export { assert };

/** What the Go test gives: { url, server, people: { name: { user_id, name, password } }, more }. */
export const given = JSON.parse(process.env.CARILLON_TEST ?? "{}");

/** A folder that is removed after the test. */
export const scratch = process.env.CARILLON_TEST_DIR ?? "/tmp";

const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** A line in the log of the test. */
export const note = (text) => tell({ note: String(text) });

let failed = 0;

/**
 * One step: a subtest of the Go test. A step that fails does not end the script, unless `must` is set; then what
 * follows makes no sense without it.
 */
export async function step(name, fn, { ms = 40_000, must = false } = {}) {
    const began = Date.now();
    let timer;
    try {
        const late = new Promise((_, no) => {
            timer = setTimeout(() => no(new Error(`not done after ${ms} ms${waiting ? ", waiting for " + waiting : ""}`)), ms);
        });
        const value = await Promise.race([fn(), late]);
        tell({ step: name, ms: Date.now() - began });
        return value;
    } catch (e) {
        failed++;
        tell({ step: name, ms: Date.now() - began, error: String(e?.stack ?? e) + (e?.data ? "\n" + JSON.stringify(e.data) : "") });
        if (must) await done();
    } finally {
        clearTimeout(timer);
        waiting = undefined;
    }
}

let waiting;

/** Waits until fn gives something true, and returns it. why() says more when that does not come about. */
export async function until(what, fn, { ms = 30_000, why = () => "" } = {}) {
    const end = Date.now() + ms;
    waiting = what;
    for (let pause = 5; ; pause = Math.min(2 * pause, 100)) {
        const v = await fn();
        if (v) {
            waiting = undefined;
            return v;
        }
        if (Date.now() > end) throw new Error(`it did not come about: ${what} ${await why()}`);
        await new Promise((r) => setTimeout(r, pause));
    }
}

/** A promise that is named when the step is over before it is. */
export async function wait(what, promise) {
    waiting = what;
    const v = await promise;
    waiting = undefined;
    return v;
}

export const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

const ends = [];

/** Something to be done at the end of the script, however it ends. */
export const atEnd = (fn) => ends.unshift(fn);

/** Ends the script: the last thing that it calls. */
export async function done() {
    for (const fn of ends.splice(0)) {
        try {
            await fn();
        } catch (e) {
            note(`at the end: ${e}`);
        }
    }
    process.stdout.write("", () => process.exit(failed ? 1 : 0));
    await new Promise(() => {});
}

process.on("unhandledRejection", (e) => process.stderr.write(`unhandled: ${e?.stack ?? e}\n`));
