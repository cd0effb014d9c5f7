{{- /* Names and labels. A component is "voters" or "agents". */}}

{{- define "kiln.name" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kiln.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kiln.labels" -}}
{{ include "kiln.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "kiln.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "kiln.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "kiln.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where a pod without a node of its own asks: this node's agent first, then the voters. */}}
{{- define "kiln.endpoint" -}}
{{- if .Values.agents.enabled -}}
{{ include "kiln.scheme" . }}://{{ include "kiln.name" . }}-local.{{ .Release.Namespace }}.svc:7400,
{{- end -}}
{{ include "kiln.votersEndpoint" . }}
{{- end }}

{{- define "kiln.votersEndpoint" -}}
{{ include "kiln.scheme" . }}://{{ include "kiln.name" . }}.{{ .Release.Namespace }}.svc:7400
{{- end }}

{{- define "kiln.scheme" -}}
{{ ternary "https" "http" (eq (include "kiln.clientsDial" .) "true") }}
{{- end }}

{{- /* What no pod of the chart goes without. */}}
{{- define "kiln.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: ["ALL"]
{{- end }}

{{- define "kiln.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}
