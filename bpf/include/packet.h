/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Ethernet frame → source, destination, ports. Whatever cannot be read past the IP header leaves a packet
 * that still has its addresses: it is judged by its source, and never gets what a port would grant.
 */
#ifndef TOLLWARD_PACKET_H
#define TOLLWARD_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

#define VLAN_TAGS_MAX	      4 /* QinQ uses two; Linux itself strips one a VLAN device */
#define EXTENSION_HEADERS_MAX 8 /* RFC 8200 names seven, each at most once but Destination Options */
/* Eight headers of at most 2,048 bytes each fit. The verifier needs a bound. */
#define EXTENSION_BYTES_MASK 0x7fff
#define VLAN_ID_MASK	     0x0fff
#define IPV4_OFFSET_MASK     0x1fff
#define IPV6_OFFSET_MASK     0xfff8
#define ETH_P_QINQ_OLD	     0x9100
#define IPV6_BYTES_MAX	     (40 + 65535)

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_MORE_FRAGMENTS 1
/* Stands for a transport protocol that nobody could read; IANA reserves the number. */
#define PROTOCOL_UNKNOWN 255

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

struct packet {
	struct flow_key flow; /* direction is set by the hook */
	__u32 ip_bytes;
	__u32 header_bytes; /* IP and transport headers: what each segment of an offloaded packet repeats */
	__u32 vlan;
	__u32 anomalies; /* enum anomaly */
	__u32 fragment_id;
	__u32 packets; /* on the wire */
	__u32 ifindex;
	__u64 now; /* at most a tick ago, until know_time was asked */
	__u16 ethernet_protocol;
	__u8 tcp_flags;
	__u8 has_ports;
	__u8 is_fragment;	/* non-first */
	__u8 is_first_fragment; /* of several */
	__u8 is_unreadable;	/* flow.protocol is not that of the transport */
	/* For rules, and filled when there are any: of a later fragment what the first one said. */
	__u8 protocol;
	__u8 shows_ports;
	__u8 is_transport_unknown;
	__u8 is_now_exact;
	__u8 is_exemption_known;
	__u8 exemption; /* enum counter: why it passes whatever is blocked; 0: it does not */
	__u16 source_port;
	__u16 destination_port;
	/* Volatile keeps these in memory: a range known to the verifier would differ for each way through the
	 * chain. */
	volatile __u32 extension_bytes;
	volatile __u32 rule_word;
	volatile __u32 rule_verdict;
	volatile __u64 rule_words;
	volatile __u64 rule_bits;
	/* Of this CPU, and kept from packet to packet: when it last looked at the clock. */
	__u64 tick;
	__u64 tick_ns;
};

/*
 * One for each direction. Not on the stack: what the verifier knows of a stack slot would make it follow
 * every way through the parser to the end of the program.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

static __always_inline struct packet *new_packet(__u32 direction)
{
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);

	if (!packet)
		return 0;
	__builtin_memset(packet, 0, __builtin_offsetof(struct packet, tick));
	packet->flow.direction = direction;
	packet->packets = 1;
	return packet;
}

/* Looks at the clock, once a packet at most. */
static __always_inline void know_time(struct packet *packet)
{
	if (packet->is_now_exact)
		return;
	packet->is_now_exact = 1;
	packet->tick = bpf_jiffies64();
	packet->now = packet->tick_ns = bpf_ktime_get_boot_ns();
}

/*
 * The time to within a tick of the kernel (1 to 10 ms), never ahead: what a block that drops needs. The clock
 * costs a fifth of such a packet, so this looks at it once a tick. Ticks are counted while the machine runs;
 * after it slept, the time is right within one.
 */
static __always_inline void know_time_roughly(struct packet *packet)
{
	if (packet->tick == bpf_jiffies64() && packet->tick_ns != 0)
		packet->now = packet->tick_ns;
	else
		know_time(packet);
}

static __always_inline void map_ipv4(struct address *to, __be32 from)
{
	__builtin_memset(to, 0, 10);
	to->bytes[10] = 0xff;
	to->bytes[11] = 0xff;
	__builtin_memcpy(to->bytes + 12, &from, 4);
}

/* As map_ipv4, to an address that lies at a multiple of 8. Hashes and comparisons read words, and would wait
 * for bytes that were just written: 20 ns a packet. */
static __always_inline void map_ipv4_words(struct address *to, __be32 from)
{
	__u64 *half = (__u64 *)to->bytes;

	half[0] = 0;
	half[1] = bpf_cpu_to_be64(0x0000ffff00000000ULL | bpf_ntohl(from));
}

static __always_inline int is_pure_syn(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline void found(struct packet *packet, enum anomaly anomaly, enum counter counter)
{
	packet->anomalies |= anomaly;
	count(counter);
}

/* Combinations that no TCP sends, but those who look for a way past filters do. */
static __always_inline int is_bad_tcp(__u8 flags, __u32 header_bytes, __u32 bytes)
{
	if (header_bytes < sizeof(struct tcphdr) || header_bytes > bytes)
		return 1;
	if (flags & TCP_SYN)
		return flags & (TCP_FIN | TCP_RST);
	return (flags & (TCP_RST | TCP_ACK)) == 0;
}

/*
 * Ports and TCP flags. Less than a whole header is no header: the kernel would not deliver it either. bytes
 * is what the IP header says is there: what follows in the frame is padding, which a sender may fill.
 */
static __always_inline void read_transport(struct packet *packet, void *at, void *end, __u32 bytes)
{
	struct flow_key *flow = &packet->flow;

	switch (flow->protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = at;

		if ((void *)(tcp + 1) > end || bytes < sizeof(*tcp))
			break;
		flow->source_port = bpf_ntohs(tcp->source);
		flow->destination_port = bpf_ntohs(tcp->dest);
		packet->tcp_flags = *((__u8 *)at + 13);
		packet->header_bytes += tcp->doff * 4;
		packet->has_ports = 1;
		if (is_bad_tcp(packet->tcp_flags, tcp->doff * 4, bytes))
			found(packet, ANOMALY_BAD_TCP, COUNTER_BAD_TCP);
		return;
	}
	case IPPROTO_UDP: {
		struct udphdr *udp = at;

		if ((void *)(udp + 1) > end || bytes < sizeof(*udp))
			break;
		flow->source_port = bpf_ntohs(udp->source);
		flow->destination_port = bpf_ntohs(udp->dest);
		packet->header_bytes += sizeof(*udp);
		packet->has_ports = 1;
		return;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 *icmp = at;

		if ((void *)(icmp + 4) > end || bytes < 4)
			break;
		flow->destination_port = icmp[0] << 8 | icmp[1];
		return;
	}
	default:
		return;
	}
	if (packet->is_first_fragment)
		found(packet, ANOMALY_TINY_FRAGMENT, COUNTER_TINY_FRAGMENT);
	else
		found(packet, ANOMALY_TRUNCATED_TRANSPORT, COUNTER_TRUNCATED_TRANSPORT);
}

static __always_inline __u32 beyond(__u32 bytes, __u32 header_bytes)
{
	return bytes > header_bytes ? bytes - header_bytes : 0;
}

static __always_inline enum counter read_ipv4(struct packet *packet, void *at, void *end, __u32 frame_bytes)
{
	struct iphdr *ip = at;
	__u32 header_bytes;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return COUNTER_MALFORMED;
	header_bytes = ip->ihl * 4;
	map_ipv4_words(&packet->flow.source, ip->saddr);
	map_ipv4_words(&packet->flow.destination, ip->daddr);
	packet->flow.protocol = ip->protocol;
	packet->header_bytes = header_bytes;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	/* 0 is an offloaded packet of more than 65,535 bytes. A sender cannot claim more than it sent. */
	if (packet->ip_bytes == 0 || packet->ip_bytes > frame_bytes) {
		if (packet->ip_bytes)
			found(packet, ANOMALY_LENGTH_BEYOND_FRAME, COUNTER_LENGTH_BEYOND_FRAME);
		packet->ip_bytes = frame_bytes;
	}
	packet->fragment_id = ip->id;
	if (ip->frag_off & bpf_htons(IPV4_OFFSET_MASK)) {
		packet->is_fragment = 1;
		/* It would overwrite the ports and flags of the first: RFC 1858, 4. */
		if ((ip->frag_off & bpf_htons(IPV4_OFFSET_MASK)) == bpf_htons(1) &&
		    ip->protocol == IPPROTO_TCP)
			found(packet, ANOMALY_TINY_FRAGMENT, COUNTER_TINY_FRAGMENT);
		return COUNTER_PASSED;
	}
	packet->is_first_fragment = (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS)) != 0;
	read_transport(packet, at + header_bytes, end, beyond(packet->ip_bytes, header_bytes));
	return COUNTER_PASSED;
}

static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT ||
	       next == IPPROTO_AH || next == IPPROTO_DSTOPTS || next == IPPROTO_MH;
}

/* Follows the chain to the transport header. Only headers with a known length are stepped over. */
static __always_inline void read_extensions(struct packet *packet, void *at, void *end)
{
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		__u8 *header = at + (packet->extension_bytes & EXTENSION_BYTES_MASK);
		__u8 kind = packet->flow.protocol;

		if (!is_extension(kind))
			break;
		if ((void *)(header + 8) > end ||
		    packet->extension_bytes + sizeof(struct ipv6hdr) + 8 > packet->ip_bytes) {
			packet->is_unreadable = 1;
			if (packet->is_first_fragment)
				found(packet, ANOMALY_TINY_FRAGMENT, COUNTER_TINY_FRAGMENT);
			else
				found(packet, ANOMALY_TRUNCATED_TRANSPORT, COUNTER_TRUNCATED_TRANSPORT);
			return;
		}
		packet->flow.protocol = header[0];
		if (kind == IPPROTO_FRAGMENT) {
			packet->extension_bytes += 8;
			/* A fragment of a fragment: its id would be the inner one's, which none of the others
			 * shows. */
			if (packet->is_first_fragment) {
				packet->is_unreadable = 1;
				found(packet, ANOMALY_TOO_MANY_EXTENSION_HEADERS,
				      COUNTER_TOO_MANY_EXTENSION_HEADERS);
				return;
			}
			__builtin_memcpy(&packet->fragment_id, header + 4, 4);
			if (((header[2] << 8 | header[3]) & IPV6_OFFSET_MASK) != 0) {
				packet->is_fragment = 1;
				packet->is_unreadable = 1;
				return;
			}
			packet->is_first_fragment = header[3] & IPV6_MORE_FRAGMENTS;
		} else if (kind == IPPROTO_AH) {
			packet->extension_bytes += (header[1] + 2) * 4;
		} else {
			packet->extension_bytes += (header[1] + 1) * 8;
		}
	}
	if (is_extension(packet->flow.protocol)) {
		packet->is_unreadable = 1;
		found(packet, ANOMALY_TOO_MANY_EXTENSION_HEADERS, COUNTER_TOO_MANY_EXTENSION_HEADERS);
		return;
	}
	packet->header_bytes += packet->extension_bytes;
	read_transport(packet, at + (packet->extension_bytes & EXTENSION_BYTES_MASK), end,
		       beyond(packet->ip_bytes, packet->header_bytes));
}

static __always_inline enum counter read_ipv6(struct packet *packet, void *at, void *end, __u32 frame_bytes)
{
	struct ipv6hdr *ip = at;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return COUNTER_MALFORMED;
	__builtin_memcpy(&packet->flow.source, &ip->saddr, 16);
	__builtin_memcpy(&packet->flow.destination, &ip->daddr, 16);
	packet->flow.protocol = ip->nexthdr;
	packet->header_bytes = sizeof(*ip);
	packet->ip_bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->payload_len == 0 || packet->ip_bytes > frame_bytes) {
		if (packet->ip_bytes > frame_bytes)
			found(packet, ANOMALY_LENGTH_BEYOND_FRAME, COUNTER_LENGTH_BEYOND_FRAME);
		/* 0 is a jumbogram, or an offloaded packet of more than the field holds. */
		packet->ip_bytes =
			ip->payload_len || ip->nexthdr == IPPROTO_HOPOPTS || frame_bytes > IPV6_BYTES_MAX
				? frame_bytes
				: sizeof(*ip);
	}
	read_extensions(packet, ip + 1, end);
	return COUNTER_PASSED;
}

/*
 * COUNTER_PASSED: the packet has addresses. Else the reason why it has none: COUNTER_NOT_IP,
 * COUNTER_MALFORMED, COUNTER_VLAN_TOO_DEEP; for the caller to count. frame_bytes is the length of the whole
 * frame.
 */
static __always_inline enum counter read_packet(struct packet *packet, void *data, void *end,
						__u32 frame_bytes)
{
	struct ethhdr *ethernet = data;
	void *at = ethernet + 1;
	__u16 protocol;

	if (at > end)
		return COUNTER_MALFORMED;
	protocol = bpf_ntohs(ethernet->h_proto);
	frame_bytes -= sizeof(*ethernet);
	for (int i = 0; i < VLAN_TAGS_MAX + 1; i++) {
		struct vlan_tag *tag = at;

		if (protocol != ETH_P_8021Q && protocol != ETH_P_8021AD && protocol != ETH_P_QINQ_OLD)
			break;
		if (i == VLAN_TAGS_MAX)
			return COUNTER_VLAN_TOO_DEEP;
		if ((void *)(tag + 1) > end)
			return COUNTER_MALFORMED;
		if (i == 0 && !packet->vlan)
			packet->vlan = bpf_ntohs(tag->tci) & VLAN_ID_MASK;
		protocol = bpf_ntohs(tag->protocol);
		at = tag + 1;
		frame_bytes -= sizeof(*tag);
	}
	packet->ethernet_protocol = protocol;
	if (protocol == ETH_P_IP)
		return read_ipv4(packet, at, end, frame_bytes);
	if (protocol == ETH_P_IPV6)
		return read_ipv6(packet, at, end, frame_bytes);
	return COUNTER_NOT_IP;
}

#endif
