#!/bin/sh
# Makes the certificates that let Dask's processes know each other: ./certificates.sh FOLDER [DAYS]
#
# The authority signs one certificate and its key is then thrown away: nobody can sign another one. To renew, run this
# again and restart scheduler, workers and runner together.
set -eu
folder=${1:?usage: certificates.sh FOLDER [DAYS]}
days=${2:-365}
umask 077
mkdir -p "$folder"
cd "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" -subj "/CN=clearcause dask" \
	-addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
	-keyout "$work/authority.key" -out "$work/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=dask" \
	-keyout "$work/key.pem" -out "$work/request.pem" 2>/dev/null
printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:scheduler,DNS:localhost,IP:127.0.0.1\n' >"$work/use"
openssl x509 -req -in "$work/request.pem" -CA "$work/ca.pem" -CAkey "$work/authority.key" -CAcreateserial \
	-days "$days" -extfile "$work/use" -out "$work/certificate.pem" 2>/dev/null
mv "$work/ca.pem" "$work/certificate.pem" "$work/key.pem" .
# the containers' user
if [ "$(id -u)" = 0 ]; then chown -R 1000:1000 .; fi
echo "ca.pem, certificate.pem and key.pem in $(pwd), good for $days days"
