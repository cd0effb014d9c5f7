{{- /* NVRTC comes with a volume, or out of an image: mounted where Kubernetes mounts
       images (on by default in 1.35), else copied by an init container. */}}
{{- define "kiln.nvrtcMounts" -}}
{{- if and .Values.nvrtc.image (semverCompare ">=1.35-0" .Capabilities.KubeVersion.Version) -}}
image
{{- end }}
{{- end }}

{{- define "kiln.nvrtcVolume" -}}
{{- with .Values.nvrtc -}}
{{- if .volume -}}
{{ toYaml .volume }}
{{- else if and .image (include "kiln.nvrtcMounts" $) -}}
image:
  reference: {{ .image }}
  pullPolicy: IfNotPresent
{{- else if .image -}}
emptyDir:
  sizeLimit: 2Gi
{{- end }}
{{- end }}
{{- end }}

{{- define "kiln.nvrtcPath" -}}
{{- if and .Values.nvrtc.image (not .Values.nvrtc.volume) (not (include "kiln.nvrtcMounts" .)) -}}
/opt/nvrtc
{{- else -}}
{{ printf "/opt/nvrtc/%s" (.Values.nvrtc.path | trimPrefix "/") | trimSuffix "/" }}
{{- end }}
{{- end }}

{{- define "kiln.nvrtcInit" -}}
{{- with .Values.nvrtc -}}
{{- if and .image (not .volume) (not (include "kiln.nvrtcMounts" $)) -}}
- name: nvrtc
  image: {{ .image }}
  imagePullPolicy: IfNotPresent
  command: ["sh", "-ec", "cp -L \"$0\"/libnvrtc* /opt/nvrtc/", {{ printf "/%s" (.path | trimPrefix "/") | quote }}]
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {memory: 256Mi}
  securityContext:
    {{- include "kiln.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - name: nvrtc
      mountPath: /opt/nvrtc
{{- end }}
{{- end }}
{{- end }}
