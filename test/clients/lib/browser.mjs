// Chromium for a script.
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { atEnd, note, scratch } from "./harness.mjs";

const flags = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/**
 * Opens a browser with an empty profile and gives its context; `(await browser()).newPage()` is a tab. It is closed at
 * the end of the script. Each call is another person's browser.
 */
export async function browser(options = {}) {
    const profile = await mkdtemp(join(scratch, "profile-"));
    const context = await chromium.launchPersistentContext(profile, {
        executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
        args: flags,
        headless: true,
        viewport: { width: 1200, height: 800 },
        ...options,
    });
    context.setDefaultTimeout(15_000);
    context.on("weberror", (e) => note(`a page threw: ${e.error()}`));
    atEnd(() => context.close());
    return context;
}

/** Takes a picture into CARILLON_TEST_SHOTS, if that is set, to be looked at by a person. */
export async function picture(page, name) {
    const dir = process.env.CARILLON_TEST_SHOTS;
    if (dir) await page.screenshot({ path: join(dir, name + ".png") });
}
