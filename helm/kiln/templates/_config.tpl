{{- /* kiln.toml of a component: the chart's own settings win over .config, and that
       of the component over that of all nodes. Takes root, component, and "start",
       false for the part whose change needs no restart: how an empty node begins. Plain text
       is taken from other pods until both audiences require TLS. */}}
{{- define "kiln.toml" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $own := get $values .component -}}
{{- $name := include "kiln.name" $root -}}
{{- $peers := list (printf "dns:%s-voters.%s.svc:7402" $name $root.Release.Namespace) -}}
{{- $agent := eq .component "agents" -}}
{{- $tls := include "kiln.tls" $root | fromJson -}}
{{- $required := and (eq $values.tls.members.mode "require") (eq $values.tls.clients.mode "require") -}}
{{- $chart := dict
      "data_dir" "/var/lib/kiln"
      "grpc_listen" "0.0.0.0:7400"
      "http_listen" "0.0.0.0:7401"
      "transfer_listen" "0.0.0.0:7402"
      "insecure" (not $required)
      "resp_listen" "127.0.0.1:7403" -}}
{{- if $agent -}}
  {{- $_ := set $chart "start" (dict "join" $peers) -}}
  {{- $_ := set $chart "cluster" (dict "voter" $own.voter) -}}
  {{- if $own.socket.enabled -}}
    {{- $_ := set $chart "socket" "/run/kiln/kiln.sock" -}}
    {{- $_ := set $chart "resp_socket" "/run/kiln/resp.sock" -}}
    {{- $_ := set $chart "socket_mode" $own.socket.mode -}}
  {{- end -}}
{{- else -}}
  {{- $_ := set $chart "start" (dict "expect" $own.replicas "peers" $peers) -}}
{{- end -}}
{{- if $values.join.tokenSecret -}}
  {{- $_ := set $chart.start "join_token_file" "/etc/kiln-join/token" -}}
{{- end -}}
{{- if $values.resp.usersSecret -}}
  {{- $_ := set $chart "resp_listen" "0.0.0.0:7403" -}}
  {{- $_ := set $chart "resp" (dict "users" "/etc/kiln-users/users") -}}
{{- end -}}
{{- if $tls -}}{{- $_ := set $chart "tls" $tls -}}{{- end -}}
{{- with include "kiln.ownSocket" (dict "root" $root "component" .component "own" $own) -}}
  {{- $_ := set $chart "socket" . -}}
{{- end -}}
{{- $object := dict -}}
{{- with $values.object -}}
  {{- if .volume -}}{{- $_ := set $object "url" "file:///l3" -}}{{- end -}}
  {{- if .url -}}{{- $_ := set $object "url" .url -}}{{- end -}}
  {{- if .endpoint -}}{{- $_ := set $object "endpoint" .endpoint -}}{{- end -}}
  {{- if .region -}}{{- $_ := set $object "region" .region -}}{{- end -}}
{{- end -}}
{{- if $object -}}{{- $_ := set $chart "object" $object -}}{{- end -}}
{{- if include "kiln.nvrtcVolume" $root -}}
  {{- $_ := set $chart "compile" (dict "nvrtc" (include "kiln.nvrtcPath" $root)) -}}
{{- end -}}
{{- $config := mergeOverwrite (deepCopy $values.config) (deepCopy $own.config) $chart -}}
{{- if not .start -}}{{- $config = omit $config "start" -}}{{- end -}}
{{- /* Helm has no whole numbers: 5.0 is 5. */ -}}
{{- regexReplaceAll "(?m)= ([0-9]+)\\.0$" (toToml $config) "= ${1}" -}}
{{- end }}
