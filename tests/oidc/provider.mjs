// An OpenID Connect provider for the end-to-end tests: the program `oidc-provider` of npm, with people who sign in
// without a password. Prints a line once it listens.
//
//   node provider.mjs FOLDER PORT PEOPLE     FOLDER has the program's node_modules; PEOPLE: JSON of claims, by login
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, port, people] = process.argv.slice(2);
const modules = (name) => import(pathToFileURL(join(folder, 'node_modules', name)));
const { default: Provider } = await modules('oidc-provider/lib/index.js');
const { generateKeyPair, exportJWK } = await modules('jose/dist/node/esm/index.js');

const key = async (alg) => exportJWK((await generateKeyPair(alg, { extractable: true })).privateKey);
const issuer = `http://127.0.0.1:${port}`;
// Read for each token: who is in which group may change.
const claims = (login) => JSON.parse(readFileSync(people, 'utf8'))[login];
const client = (client_id, how) => ({
  client_id,
  application_type: 'native',
  ...how,
  redirect_uris: ['http://127.0.0.1/callback'],
  response_types: ['code'],
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
});
// What has to be encoded on its way, in a form and before Base64.
const client_secret = 'of the daemon: 100%+&=';
const provider = new Provider(issuer, {
  clients: [
    client('atelier', { token_endpoint_auth_method: 'none' }),
    client('basic', { token_endpoint_auth_method: 'client_secret_basic', client_secret }),
    client('post', { token_endpoint_auth_method: 'client_secret_post', client_secret }),
  ],
  // New ones each time it starts, so that tokens of an earlier one are of an unknown key.
  jwks: { keys: [{ ...(await key('RS256')), alg: 'RS256', use: 'sig' }, { ...(await key('ES256')), alg: 'ES256', use: 'sig' }] },
  cookies: { keys: ['tests'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'groups'] },
  conformIdTokenClaims: false,
  features: { deviceFlow: { enabled: true }, revocation: { enabled: true }, devInteractions: { enabled: true } },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  findAccount: (_, login) =>
    claims(login) && { accountId: login, claims: () => ({ sub: login, ...claims(login) }) },
});
provider.listen(Number(port), '127.0.0.1', () => console.log(`listening ${issuer}`));
