// OAuth authorization servers for the system tests: oidc-provider, with test-only routes in front.
//
// Reads lines of JSON from stdin, answers each with one, and exits when stdin closes, so that a killed test run leaves no
// server behind:
//
//   {"start": {"secrets": {"basic": "...", "post": "...", "inspector": "..."}, "config": {}}}
//                           starts a server on a free port of 127.0.0.1; the answer is its metadata, or {"error": ...}
//   {"stop": ISSUER}        ends it and its connections
//
// config (all optional): accessTokenTtl, refreshTokenTtl (seconds), delayMs, and jwk, the public key with which
// the client "jwt" proves itself. For logins: refreshTokens and registration (false: there are none), deny (true: no
// consent, whatever the person answers), auto (true: the pages press their own first button), documents (the metadata of
// clients by its https address; it is not fetched), and of the device flow deviceInterval (null: not told) and deviceTtl
// (seconds). For assertions (RFC 7523): trusted, a list of {issuer, jwks}, whose tokens the client "workload" can present.
// Token exchange (RFC 8693) is for the client "public": an access token of this server for another one, or an id_token of
// this server for an identity assertion, unless its audience is in denied.

import { createHash, generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

import { pages } from './pages.mjs';

// The provider's notices for developers go to the console as soon as it is loaded, some of them to
// stdout, which carries our one line only: hence no static import. Real errors use console.error.
console.info = console.warn = () => {};
// The provider is written for Node 22; this is the only thing it uses here that Node 20 lacks.
URL.parse ??= (url, base) => (URL.canParse(url, base) ? new URL(url, base) : null);
const { default: Provider, errors } = await import('oidc-provider');
const { SignJWT, createLocalJWKSet, importJWK, jwtVerify } = await import('jose');

const SCOPES = ['openid', 'offline_access', 'mcp:read', 'mcp:write'];
const ACCOUNT = 'test-user';
const MONTH = 30 * 24 * 3600;

const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ID_JAG = 'urn:ietf:params:oauth:token-type:id-jag';

// The provider's own memory adapter forgets everything but the last 1000 entries.
class MapAdapter {
  #entries = new Map();
  #findBy(key, value) { return [...this.#entries.values()].find((entry) => entry[key] === value); }
  async find(id) { return this.#entries.get(id); }
  async findByUid(uid) { return this.#findBy('uid', uid); }
  async findByUserCode(userCode) { return this.#findBy('userCode', userCode); }
  async upsert(id, payload) { this.#entries.set(id, payload); }
  async consume(id) { this.#entries.get(id).consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { this.#entries.delete(id); }
  async revokeByGrantId(grantId) {
    for (const [id, entry] of this.#entries) {
      if (entry.grantId === grantId) this.#entries.delete(id);
    }
  }
}

// Every absolute URI is a known resource; its access tokens are opaque, like the ones without one.
const resourceServer = (resource) => ({
  audience: resource, scope: SCOPES.join(' '), accessTokenFormat: 'opaque',
});

const running = new Map(); // servers by their issuer

async function start({ secrets, config: changes = {} }) {
  const config = {
    accessTokenTtl: 3600, refreshTokenTtl: 86400, delayMs: 0,
    refreshTokens: true, registration: true, deny: false, auto: false, documents: {}, deviceInterval: 1, deviceTtl: 600,
    trusted: [], denied: [],
    ...changes,
  };
  for (const id of ['basic', 'post', 'inspector']) {
    if (!secrets[id]) throw new Error(`there is no secret for the client "${id}"`);
  }

  const client = (client_id, token_endpoint_auth_method) => ({
    client_id,
    client_secret: secrets[client_id],
    token_endpoint_auth_method,
    grant_types: [
      'authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code',
      ...(client_id === 'public' ? [TOKEN_EXCHANGE] : []),
    ],
    response_types: ['code'],
    application_type: 'native', // any port of the loopback redirect (RFC 8252 section 7.3)
    redirect_uris: ['http://127.0.0.1/callback'],
  });

  const server = createServer();
  server.keepAliveTimeout = 60_000; // no idle connection closed under a client that is about to use it
  await new Promise((resolve, reject) => {
    server.once('error', reject).listen(0, '127.0.0.1', resolve);
  });
  const issuer = `http://127.0.0.1:${server.address().port}`;

  const signing = { ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' }), alg: 'ES256' };

  const provider = new Provider(issuer, {
    adapter: MapAdapter,
    clients: [
      client('basic', 'client_secret_basic'),
      client('post', 'client_secret_post'),
      client('public', 'none'),
      client('inspector', 'client_secret_basic'),
      ...(config.jwk ? [{ ...client('jwt', 'private_key_jwt'), jwks: { keys: [config.jwk] } }] : []),
      {
        ...client('machine', 'client_secret_basic'), client_secret: secrets.basic,
        grant_types: ['client_credentials'], response_types: [], redirect_uris: [],
      },
      {
        ...client('workload', 'none'), grant_types: [JWT_BEARER], response_types: [], redirect_uris: [],
      },
    ],
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    jwks: { keys: [signing] },
    scopes: SCOPES,
    findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
    rotateRefreshToken: true, // and a spent refresh token that comes back revokes its whole family
    ttl: {
      // The grant is not renewed by a refresh: it has to outlive all of its tokens.
      AccessToken: config.accessTokenTtl, ClientCredentials: config.accessTokenTtl, RefreshToken: config.refreshTokenTtl, Grant: MONTH, IdToken: 3600,
      DeviceCode: config.deviceTtl,
    },
    ...(config.refreshTokens ? {} : { issueRefreshToken: () => false }),
    pkce: { required: () => true },
    fetch: async (url) => {
      const document = config.documents[url];
      return document ? Response.json(document) : new Response('', { status: 404 });
    },
    features: {
      registration: { enabled: config.registration },
      clientIdMetadataDocument: { enabled: true, ack: 'draft-02' },
      deviceFlow: { enabled: true },
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      revocation: { enabled: true },
      introspection: {
        enabled: true,
        allowedPolicy: (ctx, { clientId }, token) => clientId === 'inspector' || clientId === token.clientId,
      },
      resourceIndicators: {
        enabled: true, getResourceServerInfo: (ctx, resource) => resourceServer(resource),
      },
    },
  });
  async function issue(ctx, accountId, gty) {
    const { client: owner } = ctx.oidc;
    const grant = new provider.Grant({ accountId, clientId: owner.clientId });
    grant.addOIDCScope('openid');
    const token = new provider.AccessToken({ accountId, client: owner, grantId: await grant.save(), gty, scope: 'openid' });
    ctx.body = { access_token: await token.save(), expires_in: token.expiration, token_type: token.tokenType };
  }

  // The provider has no such grants of its own. It checks the client, and these check the token as the RFCs say.
  provider.registerGrantType(JWT_BEARER, async (ctx) => {
    const audience = [issuer, `${issuer}${tokenPath}`];
    for (const { issuer: trusted, jwks } of config.trusted) {
      const verified = await jwtVerify(ctx.oidc.params.assertion, createLocalJWKSet(jwks), { issuer: trusted, audience })
        .catch(() => null);
      if (verified) return issue(ctx, verified.payload.sub, JWT_BEARER);
    }
    throw new errors.InvalidGrant('the assertion is not valid');
  }, ['assertion', 'scope', 'resource']);

  provider.registerGrantType(TOKEN_EXCHANGE, async (ctx) => {
    const { params, client: owner } = ctx.oidc;
    if (params.requested_token_type !== ID_JAG) {
      const subject = await provider.AccessToken.find(params.subject_token);
      if (!subject) throw new errors.InvalidRequest('the subject token is not valid');
      await issue(ctx, subject.accountId, TOKEN_EXCHANGE);
      ctx.body.issued_token_type = 'urn:ietf:params:oauth:token-type:access_token';
      return;
    }
    if (config.denied.includes(params.audience)) throw new errors.AccessDenied('the policy does not allow it');
    const key = await importJWK(signing, 'ES256');
    const { d, ...own } = signing;
    const { payload } = await jwtVerify(params.subject_token, await importJWK(own, 'ES256'), {
      issuer, audience: owner.clientId,
    }).catch(() => { throw new errors.InvalidGrant('the id_token is not valid'); });
    ctx.body = {
      access_token: await new SignJWT({ client_id: 'workload', resource: params.resource })
        .setProtectedHeader({ alg: 'ES256', typ: 'oauth-id-jag+jwt' })
        .setIssuer(issuer).setSubject(payload.sub).setAudience(params.audience)
        .setIssuedAt().setExpirationTime('5m').setJti(crypto.randomUUID())
        .sign(key),
      issued_token_type: ID_JAG,
      token_type: 'N_A',
      expires_in: 300,
    };
  }, ['audience', 'resource', 'scope', 'requested_token_type', 'subject_token', 'subject_token_type', 'actor_token',
    'actor_token_type']);

  provider.on('server_error', (ctx, error) => console.error(error));
  provider.on('error', (error) => console.error(error));
  for (const id of Object.keys(secrets)) await provider.Client.find(id); // throws now at a secret it refuses

  const log = []; // one entry for each request to the token endpoint, in the order of arrival
  const scripts = []; // faults for the next token requests, the oldest first
  let [isReleased, release, released] = [];
  function hold() {
    isReleased = false;
    released = new Promise((resolve) => { release = () => { isReleased = true; resolve(); }; });
  }
  hold();

  const routes = {
    // A grant and its first tokens, as if the user had just been through the authorization endpoint.
    'POST /test/grant': async ({ client_id: clientId, scope = 'openid offline_access', resource }) => {
      const owner = await provider.Client.find(clientId ?? '');
      if (!owner) throw new Error('unknown client_id');
      const grant = new provider.Grant({ accountId: ACCOUNT, clientId });
      grant.addOIDCScope(scope);
      for (const uri of [resource ?? []].flat()) grant.addResourceScope(uri, scope);
      const source = {
        accountId: ACCOUNT, client: owner, grantId: await grant.save(), gty: 'authorization_code', scope,
      };
      const refreshToken = new provider.RefreshToken({ ...source, resource });
      const accessToken = new provider.AccessToken(source);
      if (typeof resource === 'string') {
        accessToken.resourceServer = new provider.ResourceServer(resource, resourceServer(resource));
      }
      return {
        refresh_token: await refreshToken.save(),
        access_token: await accessToken.save(),
        grant_id: source.grantId,
      };
    },

    // As if the registration had never been.
    'POST /test/forget': async ({ client_id: clientId }) => {
      const known = await provider.Client.adapter.find(clientId);
      await provider.Client.adapter.destroy(clientId);
      return { forgotten: Boolean(known) };
    },

    'POST /test/revoke': async ({ grant_id: grantId }) => {
      const grant = await provider.Grant.find(grantId);
      await grant?.destroy();
      return { revoked: Boolean(grant) };
    },

    // One access token alone: the provider's own endpoint for it ends the whole grant.
    'POST /test/end': async ({ access_token: accessToken }) => {
      const token = await provider.AccessToken.find(accessToken);
      await token?.destroy();
      return { ended: Boolean(token) };
    },

    // {status, headers, body} replaces the answer, {drop: true} closes the connection instead of
    // answering, {delayMs} delays, {hold: true} delays until /test/release; "process" says whether the provider sees the request nevertheless.
    'POST /test/script': ({ clear = false, ...script }) => {
      if (clear) scripts.length = 0;
      else scripts.push({ times: 1, ...script });
      if (script.hold && isReleased) hold();
      return { queued: scripts.reduce((sum, { times }) => sum + times, 0) };
    },

    'POST /test/release': () => {
      release();
      return {};
    },

    'GET /test/log': () => {
      const [presented, again, answered] = [new Set(), new Set(), new Set()];
      let reused = 0;
      for (const { fingerprint, status } of log.filter((entry) => entry.fingerprint)) {
        if (presented.has(fingerprint)) again.add(fingerprint);
        if (answered.has(fingerprint)) reused += 1;
        if (status === 200) answered.add(fingerprint);
        presented.add(fingerprint);
      }
      return { requests: log, reused, presented_twice: again.size };
    },
  };

  provider.use(async (ctx, next) => {
    const route = routes[`${ctx.method} ${ctx.path}`];
    if (!route) return next();
    try {
      ctx.body = await route(JSON.parse((await text(ctx.req)) || '{}'));
    } catch (error) {
      ctx.status = 400;
      ctx.body = { error: error.message };
    }
  });

  provider.use(pages(provider, { account: ACCOUNT, deny: config.deny, auto: config.auto }));

  // The provider leaves it out, which means five seconds.
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.body?.device_code && config.deviceInterval !== null) ctx.body.interval = config.deviceInterval;
  });

  // The log holds no tokens and no secrets: a fingerprint of the one, and of a Basic header the user.
  function record(ctx, params) {
    const token = params.get('refresh_token');
    const resources = params.getAll('resource');
    const [, basic] = /^Basic (.+)$/i.exec(ctx.get('authorization')) ?? [];
    const [user] = basic ? Buffer.from(basic, 'base64').toString().split(':') : [null];
    const entry = {
      grant_type: params.get('grant_type'),
      client_id: user ?? params.get('client_id'),
      // The provider takes a secret in either place, whatever the client is registered for.
      client_auth: (basic && 'basic') || (params.has('client_secret') && 'post')
        || (params.has('client_assertion') && 'jwt') || 'none',
      fingerprint: token ? createHash('sha256').update(token).digest('hex') : null,
      status: null, // what was sent; null: nothing was (dropped, pending, or the client was gone)
      provider_status: null, // what the provider decided; null: it did not see the request
      resource: resources.length > 1 ? resources : resources[0] ?? null,
      user_agent: ctx.get('user-agent') || null,
      at: Date.now(),
    };
    log.push(entry);
    return entry;
  }

  provider.use(async (ctx, next) => {
    if (ctx.method !== 'POST' || ctx.path !== tokenPath) return next();
    ctx.req.body = await text(ctx.req); // the provider takes a body from here when it was read before
    const entry = record(ctx, new URLSearchParams(ctx.req.body));

    while (scripts[0]?.times < 1) scripts.shift();
    const script = scripts[0] ?? {};
    if (script.times) script.times -= 1;
    const { status, headers = {}, body = '', drop = false, delayMs = config.delayMs } = script;

    if (script.process || (!drop && !status)) {
      await next();
      entry.provider_status = ctx.status;
    }
    await sleep(delayMs);
    if (script.hold) await released;
    if (drop) {
      ctx.respond = false;
      ctx.req.socket.destroy();
      return;
    }
    if (status) {
      for (const name of ctx.res.getHeaderNames()) ctx.remove(name);
      ctx.status = status;
      ctx.body = body;
      ctx.set(headers);
    }
    if (!ctx.res.destroyed && ctx.req.socket.writable) entry.status = ctx.status;
  });

  let tokenPath;
  server.on('request', provider.callback());
  const metadata = await (await fetch(`${issuer}/.well-known/oauth-authorization-server`)).json();
  tokenPath = new URL(metadata.token_endpoint).pathname;
  running.set(issuer, server);
  return metadata;
}

async function stop(issuer) {
  const server = running.get(issuer);
  running.delete(issuer);
  server.close();
  server.closeAllConnections();
  return {};
}

for await (const line of createInterface({ input: process.stdin })) {
  const { start: wanted, stop: issuer } = JSON.parse(line);
  const answer = wanted ? start(wanted) : stop(issuer);
  console.log(JSON.stringify(await answer.catch((error) => ({ error: error.message }))));
}
process.exit();
