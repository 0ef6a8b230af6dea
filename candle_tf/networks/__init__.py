"""What any Keras network needs: surgery, pretrained weights, files of strangers read safely."""
