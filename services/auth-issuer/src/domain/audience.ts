const URN = 'urn:tollward:audience:'

/** An audience as a resource indicator: names of APIs need not be URIs, resource indicators must (RFC 8707, section 2). */
export function resourceOf(audience: string): string {
  return URL.canParse(audience) && !audience.includes('#') ? audience : `${URN}${encodeURIComponent(audience)}`
}

/** The audience that a resource indicator stands for. */
export function audienceOf(resource: string): string {
  return resource.startsWith(URN) ? decodeURIComponent(resource.slice(URN.length)) : resource
}
