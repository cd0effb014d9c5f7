{{- /* TLS of a node: its settings, the containers that sign its certificates, and where they lie.
       An audience's certificates come from its own volume, else from tls.authoritySecret. */}}

{{- /* Whether some audience speaks TLS with certificates that the pods sign. */}}
{{- define "kiln.signsCertificates" -}}
{{- with .Values.tls -}}
{{- if or (and (ne .members.mode "off") (not .members.volume)) (and (ne .clients.mode "off") (not .clients.volume)) -}}
true
{{- end }}
{{- end }}
{{- end }}

{{- /* Settings `tls` of kiln.toml, as JSON. */}}
{{- define "kiln.tls" -}}
{{- $result := dict -}}
{{- with .Values.tls -}}
{{- if and (include "kiln.signsCertificates" $) (not .authoritySecret) -}}
  {{- fail "tls: who signs the certificates? Name the secret of `kiln certs init` in tls.authoritySecret, or give tls.members.volume and tls.clients.volume" -}}
{{- end -}}
{{- if and (has .clients.mode (list "dial" "require")) (not .clients.ca) -}}
  {{- fail "tls.clients.mode: clients that are told https:// need the authority in tls.clients.ca (--set-file tls.clients.ca=ca/clients-ca.pem)" -}}
{{- end -}}
{{- $audiences := dict "members" (dict "kind" "member" "values" .members) "clients" (dict "kind" "server" "values" .clients) -}}
{{- range $audience, $of := $audiences -}}
  {{- $values := $of.values -}}
  {{- if ne $values.mode "off" -}}
    {{- $own := dict "mode" $values.mode -}}
    {{- $ca := printf "/etc/kiln-trust/%s-ca.pem" $audience -}}
    {{- if $values.volume -}}
      {{- $folder := printf "/etc/kiln-%s" $audience -}}
      {{- $_ := set $own "cert" (printf "%s/tls.crt" $folder) -}}
      {{- $_ := set $own "key" (printf "%s/tls.key" $folder) -}}
      {{- $ca = printf "%s/ca.crt" $folder -}}
    {{- else -}}
      {{- $_ := set $own "cert" (printf "/etc/kiln-certs/node-%s.pem" $of.kind) -}}
      {{- $_ := set $own "key" (printf "/etc/kiln-certs/node-%s.key" $of.kind) -}}
    {{- end -}}
    {{- if eq $audience "members" -}}
      {{- $_ := set $own "ca" $ca -}}
      {{- $_ := set $own "named" $values.named -}}
      {{- $_ := set $own "proofs" $values.proofs -}}
    {{- else -}}
      {{- /* What only clients are told changes nothing of a node. */ -}}
      {{- if eq $values.mode "dial" -}}{{- $_ := set $own "mode" "accept" -}}{{- end -}}
      {{- if ne $values.verify "off" -}}
        {{- $_ := set $own "ca" $ca -}}
        {{- $_ := set $own "verify" $values.verify -}}
      {{- end -}}
    {{- end -}}
    {{- $_ := set $result $audience $own -}}
  {{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $result -}}
{{- end }}

{{- /* Whether clients are told https://. */}}
{{- define "kiln.clientsDial" -}}
{{- if has .Values.tls.clients.mode (list "dial" "require") -}}
true
{{- end }}
{{- end }}

{{- /* Where the program in a node's own pod asks that node, with no token: by its socket. */}}
{{- define "kiln.ownSocket" -}}
{{- $config := mergeOverwrite (deepCopy .root.Values.config) (deepCopy .own.config) -}}
{{- if or (ne .root.Values.tls.clients.mode "off") (dig "access" "required" false $config) -}}
{{- if eq .component "agents" -}}
{{ ternary "/run/kiln/kiln.sock" "/var/lib/kiln/kiln.sock" .own.socket.enabled }}
{{- else -}}
/var/lib/kiln/kiln.sock
{{- end }}
{{- end }}
{{- end }}

{{- /* The container that signs: before the node once, and beside it whenever it is time.
       Only it has the authorities' keys. */}}
{{- define "kiln.certsContainer" -}}
{{- $name := include "kiln.name" .root -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $hosts := list "localhost" "127.0.0.1" "$(POD_IP)" -}}
{{- $names := list $name (printf "%s-local" $name) -}}
{{- if eq .component "agents" -}}
  {{- $hosts = append $hosts "$(HOST_IP)" -}}
{{- else -}}
  {{- $names = append $names (printf "$(POD_NAME).%s-voters" $name) -}}
{{- end -}}
{{- range $names -}}
  {{- $hosts = append $hosts (printf "%s.%s.svc" . $namespace) -}}
  {{- $hosts = append $hosts (printf "%s.%s.svc.cluster.local" . $namespace) -}}
{{- end -}}
{{- $hosts = concat $hosts .root.Values.tls.hosts -}}
- name: {{ ternary "first-certs" "certs" .once }}
  image: {{ include "kiln.image" .root | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - certs
    - node
    - --dir=/ca
    - --out=/etc/kiln-certs
    - --data-dir=/var/lib/kiln
    - --days={{ .root.Values.tls.days }}
    {{- if .once }}
    - --once
    {{- end }}
    {{- range $hosts }}
    - --host={{ . }}
    {{- end }}
  env:
    {{- range $variable, $field := dict "HOST_IP" "status.hostIP" "POD_IP" "status.podIP" "POD_NAME" "metadata.name" }}
    - name: {{ $variable }}
      valueFrom:
        fieldRef:
          fieldPath: {{ $field }}
    {{- end }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 128Mi}
  securityContext:
    {{- include "kiln.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    # The node's key, which its member's certificate names; made there before the node's first start.
    - name: data
      mountPath: /var/lib/kiln
      {{- if not .once }}
      readOnly: true
      {{- end }}
    - name: authority
      mountPath: /ca
      readOnly: true
    - name: certs
      mountPath: /etc/kiln-certs
{{- end }}

{{- define "kiln.tlsMounts" -}}
{{- if include "kiln.signsCertificates" . }}
- name: certs
  mountPath: /etc/kiln-certs
  readOnly: true
- name: trust
  mountPath: /etc/kiln-trust
  readOnly: true
{{- end }}
{{- range $audience := list "members" "clients" }}
{{- $values := get $.Values.tls $audience }}
{{- if and (ne $values.mode "off") $values.volume }}
- name: tls-{{ $audience }}
  mountPath: /etc/kiln-{{ $audience }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "kiln.tlsVolumes" -}}
{{- if include "kiln.signsCertificates" . }}
- name: certs
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
- name: authority
  secret:
    secretName: {{ .Values.tls.authoritySecret }}
    defaultMode: 0440
# Without the keys, for the node.
- name: trust
  secret:
    secretName: {{ .Values.tls.authoritySecret }}
    items:
      - {key: members-ca.pem, path: members-ca.pem}
      - {key: clients-ca.pem, path: clients-ca.pem}
{{- end }}
{{- range $audience := list "members" "clients" }}
{{- $values := get $.Values.tls $audience }}
{{- if and (ne $values.mode "off") $values.volume }}
- name: tls-{{ $audience }}
  {{- toYaml $values.volume | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
