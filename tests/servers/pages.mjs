// What a person meets at the authorization server: a page to sign in, and a page to consent.

import { text } from 'node:stream/consumers';

const AUTO = "<script>document.querySelector('button').click()</script>";

const escape = (value) => String(value).replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

// The first button is the one that goes on.
const page = (title, rows, auto) => `<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>${title}</title><h1>${title}</h1>
<form method="post">${rows.join('\n')}</form>${auto ? AUTO : ''}</html>
`;

const signIn = (auto) => page('Sign in', [
  '<input type="text" name="login" placeholder="Name">',
  '<input type="password" name="password" placeholder="Password">',
  '<button>Sign in</button>',
], auto);

const askConsent = ({ client_id: client, scope = '', resource = [] }, auto) => page('Consent', [
  `<p>${escape(client)} wants: ${escape(scope)}</p>`,
  ...[resource].flat().map((uri) => `<p>At: ${escape(uri)}</p>`),
  '<button name="answer" value="allow">Allow</button>',
  '<button name="answer" value="deny">Deny</button>',
], auto);

// What the person has agreed to: all that was asked for.
const allow = async (provider, { prompt: { details }, grantId, session, params }) => {
  const grant = (grantId && await provider.Grant.find(grantId))
    || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  if (details.missingOIDCScope) grant.addOIDCScope(details.missingOIDCScope.join(' '));
  if (details.missingOIDCClaims) grant.addOIDCClaims(details.missingOIDCClaims);
  for (const [resource, scopes] of Object.entries(details.missingResourceScopes ?? {})) {
    grant.addResourceScope(resource, scopes.join(' '));
  }
  return { consent: { grantId: await grant.save() } };
};

// deny: whatever the person answers, the server refuses. auto: the pages press their own first button.
export const pages = (provider, { account, deny, auto }) => async (ctx, next) => {
  if (!/^\/interaction\/[^/]+$/.test(ctx.path)) return next();
  const interaction = await provider.interactionDetails(ctx.req, ctx.res);
  const consent = interaction.prompt.name === 'consent';
  if (ctx.method === 'GET') {
    ctx.type = 'html';
    ctx.body = consent ? askConsent(interaction.params, auto) : signIn(auto);
    return undefined;
  }
  const answer = new URLSearchParams(await text(ctx.req));
  let result = { login: { accountId: account } };
  if (consent && (deny || answer.get('answer') !== 'allow')) {
    result = { error: 'access_denied', error_description: 'the person said no' };
  } else if (consent) {
    result = await allow(provider, interaction);
  }
  ctx.redirect(await provider.interactionResult(ctx.req, ctx.res, result, { mergeWithLastSubmission: consent }));
  ctx.status = 303;
  return undefined;
};
