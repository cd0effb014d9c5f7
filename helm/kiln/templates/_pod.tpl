{{- /* The pod of a component, but for its data volume: root, component, own (its
       values), data (the volume, if it is none of a claim template). */}}

{{- define "kiln.podMetadata" -}}
labels:
  {{- include "kiln.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .own.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: kiln
  checksum/config: {{ include "kiln.toml" . | sha256sum }}
  {{- with .own.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "kiln.scheduling" -}}
{{- $class := .own.priorityClassName | default (ternary (include "kiln.name" .root) "" .root.Values.priorityClass.create) -}}
{{- with $class -}}
priorityClassName: {{ . }}
{{- end }}
{{- with .own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "kiln.container" -}}
{{- $values := .root.Values -}}
{{- $agent := eq .component "agents" -}}
{{- $scheme := ternary "\n    scheme: HTTPS" "" (eq $values.tls.clients.mode "require") -}}
name: kiln
image: {{ include "kiln.image" .root | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args: ["serve", "--config", "/etc/kiln/kiln.toml"]
env:
  {{- if $agent }}
  # Kept up to date in the cluster when the address changes.
  - name: KILN_ADVERTISE
    valueFrom:
      fieldRef:
        fieldPath: {{ ternary "status.hostIP" "status.podIP" (eq .own.network "host") }}
  {{- else }}
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: KILN_ADVERTISE
    value: "$(POD_NAME).{{ include "kiln.name" .root }}-voters.{{ .root.Release.Namespace }}.svc"
  {{- end }}
  {{- with include "kiln.ownSocket" . }}
  # For `kubectl exec`, and before the node stops.
  - name: KILN_ENDPOINT
    value: unix:{{ . }}
  {{- end }}
  {{- with concat $values.env .own.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or $values.object.existingSecret $values.envFrom }}
envFrom:
  {{- with $values.object.existingSecret }}
  - secretRef:
      name: {{ . }}
  {{- end }}
  {{- with $values.envFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
ports:
  - name: grpc
    containerPort: 7400
    protocol: TCP
    {{- if and $agent (ne .own.network "pod") }}
    hostPort: 7400
    {{- end }}
  - name: http
    containerPort: 7401
    protocol: TCP
    {{- if and $agent (eq .own.network "host") }}
    hostPort: 7401
    {{- end }}
  - name: transfer
    containerPort: 7402
    protocol: TCP
    {{- if and $agent (eq .own.network "host") }}
    hostPort: 7402
    {{- end }}
  {{- if $values.resp.usersSecret }}
  - name: resp
    containerPort: 7403
    protocol: TCP
    {{- if and $agent (ne .own.network "pod") }}
    hostPort: 7403
    {{- end }}
  {{- end }}
# Alive as soon as it listens: opening a large index, looking at NVRTC and joining may
# take their time, and are for the readiness probe alone.
startupProbe:
  httpGet:
    path: /healthz
    port: http
    {{- $scheme }}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet:
    path: /healthz
    port: http
    {{- $scheme }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
# A node without quorum still answers from what it has, and is ready.
readinessProbe:
  httpGet:
    path: /readyz
    port: http
    {{- $scheme }}
  periodSeconds: 5
  timeoutSeconds: 5
{{- with include "kiln.preStop" . }}
lifecycle:
  preStop:
    exec:
      command: {{ . }}
{{- end }}
resources:
  {{- toYaml .own.resources | nindent 2 }}
securityContext:
  {{- include "kiln.containerSecurity" .root | nindent 2 }}
volumeMounts:
  - name: data
    mountPath: /var/lib/kiln
  - name: config
    mountPath: /etc/kiln
    readOnly: true
  # Scratch space of compiles.
  - name: tmp
    mountPath: /tmp
  {{- if and $agent .own.socket.enabled }}
  - name: socket
    mountPath: /run/kiln
  {{- end }}
  {{- if $values.resp.usersSecret }}
  - name: users
    mountPath: /etc/kiln-users
    readOnly: true
  {{- end }}
  {{- if $values.join.tokenSecret }}
  - name: join
    mountPath: /etc/kiln-join
    readOnly: true
  {{- end }}
  {{- with include "kiln.tlsMounts" .root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if $values.object.volume }}
  - name: l3
    mountPath: /l3
  {{- end }}
  {{- if include "kiln.nvrtcVolume" .root }}
  - name: nvrtc
    mountPath: /opt/nvrtc
    readOnly: true
  {{- end }}
  {{- with $values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "kiln.volumes" -}}
{{- $values := .root.Values -}}
- name: config
  configMap:
    name: {{ include "kiln.name" .root }}-{{ .component }}
- name: tmp
  emptyDir:
    sizeLimit: {{ $values.tmpSize }}
{{- if $values.resp.usersSecret }}
- name: users
  secret:
    secretName: {{ $values.resp.usersSecret }}
{{- end }}
{{- if $values.join.tokenSecret }}
# The founders make the token that is in it.
- name: join
  secret:
    secretName: {{ $values.join.tokenSecret }}
    optional: true
{{- end }}
{{- with include "kiln.tlsVolumes" .root | trim }}
{{ . }}
{{- end }}
{{- with $values.object.volume }}
- name: l3
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "kiln.nvrtcVolume" .root }}
- name: nvrtc
  {{- . | nindent 2 }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* A voter needs none: SIGTERM makes it hand over its leadership. An agent whose disk
       ends with its pod leaves, for it comes back as another node: what nobody took over
       in time is lost with that disk in any case. 30 s are for the change of the membership
       and for SIGTERM. */}}
{{- define "kiln.preStop" -}}
{{- if .own.preStop -}}
{{ toJson .own.preStop }}
{{- else if and (eq .component "agents") (ne .own.storage.type "hostPath") -}}
{{- $within := max 0 (sub (int .own.terminationGracePeriodSeconds) 30) -}}
{{- $config := mergeOverwrite (deepCopy .root.Values.config) (deepCopy .own.config) -}}
{{- $command := list "kiln" "cluster" "leave" "--force" "--within" (printf "%ds" $within) -}}
{{- /* Where a token is needed, the node's own user needs none at its socket for this. */ -}}
{{- if dig "access" "required" false $config -}}
{{- $socket := ternary "/run/kiln/kiln.sock" (dig "socket" "/var/lib/kiln/kiln.sock" $config) .own.socket.enabled -}}
{{- $command = concat $command (list "--endpoint" (printf "unix:%s" $socket)) -}}
{{- end -}}
{{ toJson $command }}
{{- end }}
{{- end }}
