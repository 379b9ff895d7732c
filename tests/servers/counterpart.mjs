// The MCP server of the official TypeScript SDK, as a counterpart: see counterpart.py.
//
//   node counterpart.mjs PORT DIRECTORY '{"json_response": false}'
//
// It stores the notifications that a client has missed, and sends them again after a Last-Event-ID.

import { randomUUID } from 'node:crypto';
import { appendFileSync, readFileSync } from 'node:fs';

import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { isInitializeRequest, SubscribeRequestSchema, UnsubscribeRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { z } from 'zod';

const NEWS = 'stage://news';
const [port, directory, options] = [Number(process.argv[2]), process.argv[3], JSON.parse(process.argv[4])];
const sessions = new Map();

const executed = (what) => appendFileSync(`${directory}/executed`, `${what}\n`);
const text = (value) => ({ content: [{ type: 'text', text: String(value) }], structuredContent: { result: value } });

// The store of the SDK's examples does not know the stream of notifications again: after a Last-Event-ID, it stays silent.
class Store {
  #events = [];
  async storeEvent(stream, message) { return String(this.#events.push({ stream, message }) - 1); }
  async replayEventsAfter(last, { send }) {
    const { stream } = this.#events[Number(last)];
    for (const [id, event] of this.#events.entries())
      if (id > Number(last) && event.stream === stream) await send(String(id), event.message);
    return stream;
  }
}

async function notify() {
  for (const { server, subscribed } of sessions.values()) {
    await server.server.sendToolListChanged();
    if (subscribed.has(NEWS)) await server.server.sendResourceUpdated({ uri: NEWS });
  }
}

function newServer(subscribed) {
  const server = new McpServer(
    { name: 'typescript', version: '1' },
    { capabilities: { logging: {}, resources: { subscribe: true }, tools: { listChanged: true } } },
  );
  const version = () => Number(readFileSync(`${directory}/version`, 'utf8'));
  const annotations = { readOnlyHint: true };
  server.registerTool('add', { inputSchema: { a: z.number(), b: z.number() }, annotations }, ({ a, b }) => {
    executed('add');
    return text(a + b);
  });
  server.registerTool('version', { annotations }, () => text(version()));
  server.registerTool('write', { inputSchema: { what: z.string() } }, ({ what }) => {
    executed(what);
    return text(`wrote ${what}`);
  });
  server.registerTool('slow', { inputSchema: { seconds: z.number() } }, async ({ seconds }) => {
    executed('slow');
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    return text('done');
  });
  server.registerTool('ask', {}, async ({ requestId }) => {
    const requestedSchema = { type: 'object', properties: { said: { type: 'string' } }, required: ['said'] };
    // A JSON response holds no question, which then goes to the stream of notifications.
    const relatedRequestId = options.json_response ? undefined : requestId;
    const said = await server.server.elicitInput({ message: 'what?', requestedSchema }, { relatedRequestId });
    executed(`heard ${said.content.said}`);
    return text(said.content.said);
  });
  server.registerTool('notify', {}, async () => {
    await notify();
    return text('sent');
  });
  server.registerResource('news', NEWS, {}, () => ({ contents: [{ uri: NEWS, text: String(version()) }] }));
  server.server.setRequestHandler(SubscribeRequestSchema, ({ params }) => (subscribed.add(params.uri), {}));
  server.server.setRequestHandler(UnsubscribeRequestSchema, ({ params }) => (subscribed.delete(params.uri), {}));
  return server;
}

const app = createMcpExpressApp();
app.post('/test/notify', async (_, response) => response.json((await notify()) ?? {}));
app.use('/mcp', requireBearerAuth({
  requiredScopes: ['use'],
  verifier: {
    async verifyAccessToken(token) {
      const scopes = JSON.parse(readFileSync(`${directory}/tokens.json`, 'utf8'))[token];
      if (scopes === undefined) throw new InvalidTokenError('unknown');
      return { token, clientId: 'agent', scopes, expiresAt: Date.now() / 1000 + 3600 };
    },
  },
}));
app.all('/mcp', async (request, response) => {
  const id = request.headers['mcp-session-id'];
  const refuse = (status, message) =>
    response.status(status).json({ jsonrpc: '2.0', error: { code: -32000, message }, id: null });
  if (id && !sessions.has(id)) return refuse(404, 'Session not found');
  if (id) return sessions.get(id).transport.handleRequest(request, response, request.body);
  if (!isInitializeRequest(request.body)) return refuse(400, 'Bad Request: No valid session ID provided');
  const subscribed = new Set();
  const server = newServer(subscribed);
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: new Store(),
    enableJsonResponse: options.json_response ?? false,
    onsessioninitialized: (made) => sessions.set(made, { server, transport, subscribed }),
  });
  transport.onclose = () => sessions.delete(transport.sessionId);
  await server.connect(transport);
  return transport.handleRequest(request, response, request.body);
});

const listener = app.listen(port, '127.0.0.1', () => {
  listener.keepAliveTimeout = 60_000; // no idle connection closed under a client that is about to use it
  console.log(JSON.stringify({ url: `http://127.0.0.1:${listener.address().port}/mcp` }));
});
process.stdin.resume().on('end', () => process.exit());
