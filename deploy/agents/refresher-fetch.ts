// A fetch that sends the current token of a grant of refresher, for the MCP TypeScript SDK and any other program:
//
//     new StreamableHTTPClientTransport(new URL("https://mcp.linear.app/mcp"), { fetch: refresherFetch("linear") })
//
// It follows the contract of shim/README.md, "The token file" and "Demands". It reads the token file before each request,
// and sends the token only to its origins. If the token has expired, it demands a newer one. If the server rejects the
// token, it demands a newer one, waits for it up to `wait` milliseconds, and sends the request again, unless the body is a
// stream. If none comes, the caller gets the server's response.
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

type Token = {
  generation: number;
  state: string;
  access_token: string | null;
  token_type: string;
  expires_at: number | null;
  origins: string[];
};

export function refresherFetch(name: string, wait = 15_000): typeof fetch {
  if (!/^[a-z0-9][a-z0-9._-]{0,63}$/.test(name)) throw new TypeError(`${JSON.stringify(name)} is not the name of a grant`);
  const { env } = process;
  const state = env.REFRESHER_STATE_DIR || join(env.XDG_STATE_HOME || join(homedir(), ".local/state"), "refresher");
  const path = join(env.REFRESHER_TOKENS_DIR || join(state, "tokens"), `${name}.json`);
  const demands = env.REFRESHER_DEMANDS_DIR || join(state, "demands");
  let stamp = "";
  let token: Token | undefined;
  let rejected = { authorization: "", ends: 0 };

  /** Reads the file if it has changed. If it cannot be read, the last token stays in use. */
  function current(): Token | undefined {
    try {
      const { mtimeNs, ino, size } = statSync(path, { bigint: true });
      if (stamp !== `${mtimeNs} ${ino} ${size}`) {
        const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
        try {
          const fields: unknown = fstatSync(file).isFile() ? JSON.parse(readFileSync(file, "utf8")) : {};
          if (isToken(fields, name)) token = fields;
        } finally {
          closeSync(file);
        }
        stamp = `${mtimeNs} ${ino} ${size}`;
      }
    } catch {}
    return token;
  }

  function authorizationFor(origin: string): string | undefined {
    const found = current();
    if (!found?.access_token || !found.origins.includes(origin)) return undefined;
    return `${found.token_type.replace(/^bearer$/i, "Bearer")} ${found.access_token}`;
  }

  /** Whether a newer token can come without a person. */
  const isAlive = () => token?.state === "active" || token?.state === "failing";

  /** Demands a newer token; `origin` is what rejected this one. */
  function demand(reason: string): void {
    try {
      if (isAlive()) writeFileSync(join(demands, `${name}.${token?.generation}`), reason, { flag: "wx" });
    } catch {} // it is there already, or cannot be written: refresher also rotates without demands
  }

  return async (input, init) => {
    const request = input instanceof Request ? input : undefined;
    const { origin } = new URL(request ? request.url : input.toString());
    const body = init?.body ?? request?.body ?? "";
    const signal = init?.signal ?? request?.signal;
    const replayable = !(Symbol.asyncIterator in Object(body)); // a stream can be read once
    let authorization = authorizationFor(origin);
    if (!authorization) return fetch(input, init);
    if (token?.expires_at && token.expires_at * 1000 <= Date.now()) demand("expiring");
    for (let sends = 1; ; sends++) {
      const headers = new Headers(init?.headers ?? request?.headers);
      headers.set("authorization", authorization);
      const response = await fetch(input, { ...init, headers });
      if (response.ok && rejected.authorization === authorization) rejected.authorization = "";
      const elsewhere = response.redirected && new URL(response.url).origin !== origin; // without the header
      if (elsewhere || !isRejection(response) || sends === 4) return response;
      let newest = authorizationFor(origin);
      if (newest === authorization && isAlive()) {
        // All requests of one rejected token share one demand and one wait.
        if (rejected.authorization !== authorization) rejected = { authorization, ends: Date.now() + wait };
        demand(origin);
        while (replayable && newest === authorization && isAlive() && Date.now() < rejected.ends) {
          await new Promise((resolve) => setTimeout(resolve, 50));
          signal?.throwIfAborted();
          newest = authorizationFor(origin);
        }
      }
      if (!replayable || !newest || newest === authorization) return response;
      authorization = newest;
      await response.body?.cancel();
    }
  };
}

/** Whether a token file of version 1 has all that is used here. */
function isToken(fields: any, name: string): fields is Token {
  const { version, generation, state, access_token, token_type, expires_at, origins } = fields;
  const isWord = (value: unknown) => typeof value === "string" && /^[!-~]+$/.test(value); // what a header can hold
  const types = Number.isSafeInteger(generation) && typeof state === "string" && isWord(token_type);
  const expiry = expires_at == null || typeof expires_at === "number";
  const places = Array.isArray(origins) && origins.every((origin) => typeof origin === "string");
  return version === 1 && fields.name === name && types && expiry && places && (!access_token || isWord(access_token));
}

/** Whether the server rejects the token: another token may help. */
function isRejection({ status, headers }: Response): boolean {
  const challenge = headers.get("www-authenticate") ?? "";
  if (status === 401) return !challenge || (/\bbearer\b/i.test(challenge) && !challenge.includes("insufficient_scope"));
  return (status === 400 || status === 403) && /\bbearer\b.*error="?invalid_token/i.test(challenge);
}
