module tollward.dev/traefik

go 1.22
