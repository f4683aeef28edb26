"""Pictures that steer a call: through ControlNets, T2I-Adapters and an IP-Adapter of the engine.

``request.py`` checks what a call asks for, ``pictures.py`` reads the pictures, a file per network makes
inputs of the U-Net of them, ``control.py`` joins these.
"""
