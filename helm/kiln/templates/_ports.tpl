{{- define "kiln.servicePorts" -}}
{{- $ports := dict "grpc" 7400 "http" 7401 "transfer" 7402 -}}
{{- range .names }}
- name: {{ . }}
  port: {{ get $ports . }}
  targetPort: {{ . }}
  protocol: TCP
{{- end }}
{{- if .root.Values.resp.usersSecret }}
- name: resp
  port: 7403
  targetPort: resp
  protocol: TCP
{{- end }}
{{- end }}
