import { errors } from 'oidc-provider'
import type { ProviderPart } from './compose.ts'

/** An assertion is made for one request; so long it has to be remembered that it was used. */
const ASSERTION_LIFETIME_MAX_SECONDS = 300

/** For clocks that differ, as oidc-provider has it. */
const CLOCK_TOLERANCE_SECONDS = 15

/** RSA is taken with keys of 2048 bits at least, which jose demands. */
const ASSERTION_ALGORITHMS = ['ES256', 'EdDSA', 'Ed25519', 'RS256', 'PS256'] as const

/**
 * Every way in which a client shows who it is, and pushed requests (RFC 9126). An assertion (RFC 7523) names this issuer and
 * nothing else as its audience, so that none that was made for another server, or for one of its endpoints, can be used here.
 */
export function clientAuthenticationPart(issuer: string): ProviderPart {
  return {
    configuration: {
      clientAuthMethods: [
        'client_secret_basic',
        'client_secret_post',
        'private_key_jwt',
        'tls_client_auth',
        'self_signed_tls_client_auth',
        'none',
      ],
      clockTolerance: CLOCK_TOLERANCE_SECONDS,
      enabledJWA: { clientAuthSigningAlgValues: ASSERTION_ALGORITHMS },
      assertJwtClientAuthClaimsAndHeader: (_ctx, { aud, exp }) => {
        const audience = Array.isArray(aud) ? aud : [aud]
        if (audience.length !== 1 || audience[0] !== issuer) {
          throw new errors.InvalidClientAuth('the audience of the assertion has to be the issuer alone')
        }
        const nowSeconds = Math.floor(Date.now() / 1000)
        if (typeof exp !== 'number' || exp > nowSeconds + ASSERTION_LIFETIME_MAX_SECONDS + CLOCK_TOLERANCE_SECONDS) {
          throw new errors.InvalidClientAuth('the assertion lives too long')
        }
      },
      features: { pushedAuthorizationRequests: { enabled: true } },
    },
  }
}
